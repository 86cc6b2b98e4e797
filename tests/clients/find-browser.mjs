// find-browser.mjs: prints the browser's program that the page is opened in; exit code 3 where there is none.
import { findBrowser, say } from "./browser.mjs";

const program = findBrowser();
if (program === undefined) process.exit(3);
say(program);
