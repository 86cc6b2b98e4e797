//! Where the `tickcast-tune` is that belongs to this program, and whether only those may have put it there who may put
//! programs there.

use std::{
    env, fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{self, Path, PathBuf},
};

use rustix::process::geteuid;

use super::tool::NAME;

/// Write permission of the group and of others.
const OTHERS_WRITE: u32 = 0o022;
/// Only an entry's owner may replace it.
const STICKY: u32 = 0o1000;

/// What there is.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// The tool, to be run.
    Tool(PathBuf),
    /// A tool that others may have put there or changed: not to be run unless it is named.
    Open(PathBuf),
    /// No tool.
    None,
}

/// The tool that was `named`, else the one that belongs to this program, if it is there.
///
/// # Errors
/// What was named is no program: what to do about it.
pub fn find(named: Option<&Path>) -> Result<Found, String> {
    match named {
        // Absolute: a bare name would be looked for among the programs of PATH.
        Some(path) if is_program(path) => {
            path::absolute(path).map(Found::Tool).map_err(|error| error.to_string())
        }
        Some(path) => Err(format!("--tune {}: there is no program of that name", path.display())),
        None => Ok(env::current_exe().map_or(Found::None, |program| find_beside(&program))),
    }
}

/// The tool that belongs to a program at `program`. Only where whoever put the program there put the tool too: a working
/// folder may be anybody's.
fn find_beside(program: &Path) -> Found {
    let Some(folder) = program.parent() else { return Found::None };
    let is_installed = folder.file_name().is_some_and(|name| name == "bin");
    let installed = folder.parent().filter(|_| is_installed).map(|prefix| (prefix, "lib/tickcast/tuning"));
    // target/PROFILE/tickcast of the source tree; tests lie one deeper.
    let roots = folder.ancestors().skip(2).take(2).filter(|root| root.join("Cargo.toml").is_file());
    let source = roots.map(|root| (root, "tuning"));
    for (prefix, below) in installed.into_iter().chain(source) {
        let tool = prefix.join(below).join(NAME);
        if is_program(&tool) {
            return if is_closed(&tool, prefix) { Found::Tool(tool) } else { Found::Open(tool) };
        }
    }
    Found::None
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Whether nobody but root and the user of this process can have put the tool there: it and each folder up to the prefix
/// that it shares with the program belong to one of them and are nobody else's to write to. In a sticky folder others may
/// make what is not there, and not replace what is. A link may lead anywhere.
fn is_closed(tool: &Path, prefix: &Path) -> bool {
    let shared = tool.ancestors().take_while(|path| path.starts_with(prefix));
    shared.into_iter().all(|path| {
        fs::symlink_metadata(path).is_ok_and(|found| {
            let mode = found.permissions().mode();
            let is_sticky = found.is_dir() && mode & STICKY != 0;
            let is_ours = found.uid() == 0 || found.uid() == geteuid().as_raw();
            !found.is_symlink() && is_ours && (mode & OTHERS_WRITE == 0 || is_sticky)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{super::tests::Folder, *};

    #[test]
    fn the_tool_is_the_one_that_came_with_the_program() {
        let folder = Folder::new("find");
        let installed = folder.program("usr/lib/tickcast/tuning/tickcast-tune", 0o755);
        assert_eq!(find_beside(&folder.0.join("usr/bin/tickcast")), Found::Tool(installed));
        let source = folder.program("tree/tuning/tickcast-tune", 0o755);
        let programs = ["tree/target/release/tickcast", "tree/target/debug/deps/tickcast"];
        for program in programs {
            assert_eq!(find_beside(&folder.0.join(program)), Found::None, "{program}: no source tree");
        }
        folder.program("tree/Cargo.toml", 0o644);
        for program in programs {
            assert_eq!(find_beside(&folder.0.join(program)), Found::Tool(source.clone()), "{program}");
        }
        folder.program("other/lib/tickcast/tuning/tickcast-tune", 0o644);
        for program in ["usr/sub/tickcast", "other/bin/tickcast"] {
            assert_eq!(find_beside(&folder.0.join(program)), Found::None, "{program}");
        }
        assert_eq!(find_beside(Path::new("tickcast")), Found::None);
    }

    #[test]
    fn a_tool_that_others_may_write_to_is_not_taken_unless_it_is_named() {
        let folder = Folder::new("open");
        let tool = folder.program("usr/lib/tickcast/tuning/tickcast-tune", 0o755);
        let program = folder.0.join("usr/bin/tickcast");
        let set = |path: &str, mode: u32| {
            fs::set_permissions(folder.0.join(path), fs::Permissions::from_mode(mode)).unwrap()
        };
        for path in
            ["", "/lib", "/lib/tickcast", "/lib/tickcast/tuning", "/lib/tickcast/tuning/tickcast-tune"]
        {
            let path = format!("usr{path}");
            for mode in [0o777, 0o775, 0o757] {
                set(&path, mode);
                assert_eq!(find_beside(&program), Found::Open(tool.clone()), "{path} {mode:o}");
                assert_eq!(find(Some(&tool)), Ok(Found::Tool(tool.clone())));
            }
            set(&path, 0o755);
        }
        // Above what it shares with the program nothing is asked: who may write there may replace the program.
        set("", 0o777);
        // What is there in a sticky folder only its owner may replace.
        set("usr", 0o1777);
        assert_eq!(find_beside(&program), Found::Tool(tool.clone()));
        let moved = folder.0.join("moved");
        fs::rename(folder.0.join("usr/lib"), &moved).unwrap();
        std::os::unix::fs::symlink(&moved, folder.0.join("usr/lib")).unwrap();
        assert_eq!(find_beside(&program), Found::Open(tool), "a link");
    }

    #[test]
    fn a_tool_that_is_named_has_to_be_one() {
        let folder = Folder::new("named");
        let tool = folder.program("tool", 0o755);
        assert_eq!(find(Some(&tool)), Ok(Found::Tool(tool.clone())));
        for path in [folder.0.join("none"), folder.0.clone(), folder.program("text", 0o644)] {
            let why = find(Some(&path)).unwrap_err();
            assert!(why.starts_with("--tune ") && why.contains("no program"), "{why}");
        }
    }
}
