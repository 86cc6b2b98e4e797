//! Finds the `tickcast-tune` that belongs to this program, and decides whether it can be trusted.

use std::{
    env, fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{self, Path, PathBuf},
};

use rustix::process::geteuid;

/// The tool's file name.
pub(super) const NAME: &str = "tickcast-tune";
/// Write permission of group and others.
const OTHERS_WRITE: u32 = 0o022;
/// Only an entry's owner may replace it.
const STICKY: u32 = 0o1000;

/// The result of looking for the tool.
#[derive(Debug, PartialEq, Eq)]
pub enum TuneTool {
    /// A tool to run.
    Trusted(PathBuf),
    /// A tool that other users may have placed or changed: not run unless named.
    Untrusted(PathBuf),
    /// No tool.
    Missing,
}

impl TuneTool {
    /// The path of a tool to run.
    pub fn trusted(&self) -> Option<&Path> {
        match self {
            TuneTool::Trusted(path) => Some(path),
            TuneTool::Untrusted(_) | TuneTool::Missing => None,
        }
    }
}

/// Finds the tool: the one that was `named`, else the one that belongs to this program.
///
/// # Errors
/// The named file cannot be executed.
pub fn locate(named: Option<&Path>) -> Result<TuneTool, String> {
    match named {
        // Absolute, because a bare name would be looked up in PATH.
        Some(path) if is_executable(path) => {
            path::absolute(path).map(TuneTool::Trusted).map_err(|error| error.to_string())
        }
        Some(path) => {
            let why =
                path.metadata().err().map_or("not an executable file".to_owned(), |error| error.to_string());
            Err(format!("--tune {}: {why}", path.display()))
        }
        None => Ok(env::current_exe().map_or(TuneTool::Missing, |program| beside(&program))),
    }
}

/// Finds the tool that belongs to the program at this path.
/// Looks only where the program's installation puts the tool, never in the working folder.
fn beside(program: &Path) -> TuneTool {
    let Some(folder) = program.parent() else { return TuneTool::Missing };
    let is_installed = folder.file_name().is_some_and(|name| name == "bin");
    let installed = folder.parent().filter(|_| is_installed).map(|prefix| (prefix, "lib/tickcast/tuning"));
    // The source tree of target/PROFILE/tickcast; test binaries are one level deeper.
    let roots = folder.ancestors().skip(2).take(2).filter(|root| root.join("Cargo.toml").is_file());
    let source = roots.map(|root| (root, "tuning"));
    for (prefix, below) in installed.into_iter().chain(source) {
        let tool = prefix.join(below).join(NAME);
        if is_executable(&tool) {
            return match is_trusted(&tool, prefix) {
                true => TuneTool::Trusted(tool),
                false => TuneTool::Untrusted(tool),
            };
        }
    }
    TuneTool::Missing
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Whether only root and the user of this process can have placed the tool.
///
/// The tool and every folder up to the prefix it shares with the program must belong to one of them and be writable by the
/// owner only. Sticky folders are fine: others may create entries there but not replace existing ones. Symbolic links are not:
/// they may lead anywhere.
fn is_trusted(tool: &Path, prefix: &Path) -> bool {
    let mut shared = tool.ancestors().take_while(|path| path.starts_with(prefix));
    shared.all(|path| {
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
    use super::*;
    use crate::operator::check::tests::TestFolder;

    #[test]
    fn the_tool_beside_the_program_or_in_its_source_tree_is_found() {
        let folder = TestFolder::new("find");
        let installed = folder.program("usr/lib/tickcast/tuning/tickcast-tune", 0o755);
        assert_eq!(beside(&folder.0.join("usr/bin/tickcast")), TuneTool::Trusted(installed));
        let source = folder.program("tree/tuning/tickcast-tune", 0o755);
        let programs = ["tree/target/release/tickcast", "tree/target/debug/deps/tickcast"];
        for program in programs {
            assert_eq!(beside(&folder.0.join(program)), TuneTool::Missing, "{program}: no source tree");
        }
        folder.program("tree/Cargo.toml", 0o644);
        for program in programs {
            assert_eq!(beside(&folder.0.join(program)), TuneTool::Trusted(source.clone()), "{program}");
        }
        folder.program("other/lib/tickcast/tuning/tickcast-tune", 0o644);
        for program in ["usr/sub/tickcast", "other/bin/tickcast"] {
            assert_eq!(beside(&folder.0.join(program)), TuneTool::Missing, "{program}");
        }
        assert_eq!(beside(Path::new("tickcast")), TuneTool::Missing);
    }

    #[test]
    fn a_tool_that_others_may_write_to_is_trusted_only_when_named() {
        let folder = TestFolder::new("open");
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
                assert_eq!(beside(&program), TuneTool::Untrusted(tool.clone()), "{path} {mode:o}");
                assert_eq!(locate(Some(&tool)), Ok(TuneTool::Trusted(tool.clone())));
            }
            set(&path, 0o755);
        }
        // Above the shared prefix permissions do not matter: who may write there may replace the program.
        set("", 0o777);
        // In a sticky folder only the owner of an entry may replace it.
        set("usr", 0o1777);
        assert_eq!(beside(&program), TuneTool::Trusted(tool.clone()));
        let moved = folder.0.join("moved");
        fs::rename(folder.0.join("usr/lib"), &moved).unwrap();
        std::os::unix::fs::symlink(&moved, folder.0.join("usr/lib")).unwrap();
        assert_eq!(beside(&program), TuneTool::Untrusted(tool), "a link");
    }

    #[test]
    fn a_named_tool_must_be_an_executable_file() {
        let folder = TestFolder::new("named");
        let tool = folder.program("tool", 0o755);
        assert_eq!(locate(Some(&tool)), Ok(TuneTool::Trusted(tool.clone())));
        for path in [folder.0.join("none"), folder.0.clone(), folder.program("text", 0o644)] {
            let error = locate(Some(&path)).unwrap_err();
            let why = if path.exists() { "not an executable file" } else { "No such file" };
            assert!(error.starts_with("--tune ") && error.contains(why), "{error}");
        }
    }
}
