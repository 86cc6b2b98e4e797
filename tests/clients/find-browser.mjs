// find-browser.mjs: prints the path of the browser; exit code 3 if there is none.
import { findBrowser, say } from "./browser.mjs";

const program = findBrowser();
if (program === undefined) process.exit(3);
say(program);
