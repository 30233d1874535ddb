//! `hostPath` volumes: what must be at the path, and what is made when it is not (upstream's `HostPathType`).

use super::{VolumeError, io_error};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

pub fn check(path: &Path, kind: &str) -> Result<(), VolumeError> {
    let wrong = |what| Err(VolumeError::HostPathType { path: path.display().to_string(), what });
    let found = std::fs::metadata(path).ok();
    let file_type = found.as_ref().map(std::fs::Metadata::file_type);
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => {
            std::fs::create_dir_all(path).map_err(io_error(format!("cannot make {}", path.display())))?;
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(path, mode).map_err(io_error(format!("cannot set the mode of {}", path.display())))
        }
        "FileOrCreate" if found.is_none() => {
            let made = std::fs::OpenOptions::new().create(true).append(true).open(path);
            made.map(drop).map_err(io_error(format!("cannot make {}", path.display())))
        }
        "Directory" | "DirectoryOrCreate" => {
            if file_type.is_some_and(|t| t.is_dir()) {
                Ok(())
            } else {
                wrong("a directory")
            }
        }
        "File" | "FileOrCreate" => {
            if file_type.is_some_and(|t| t.is_file()) {
                Ok(())
            } else {
                wrong("a file")
            }
        }
        "Socket" => {
            if file_type.is_some_and(|t| t.is_socket()) {
                Ok(())
            } else {
                wrong("a socket file")
            }
        }
        "CharDevice" => {
            if file_type.is_some_and(|t| t.is_char_device()) {
                Ok(())
            } else {
                wrong("a character device")
            }
        }
        "BlockDevice" => {
            if file_type.is_some_and(|t| t.is_block_device()) {
                Ok(())
            } else {
                wrong("a block device")
            }
        }
        _ => wrong("of a type that is known"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("f"), "x").unwrap();
        for (name, kind, ok) in [
            ("none", "", true),
            ("none", "Directory", false),
            ("none", "File", false),
            ("f", "File", true),
            ("f", "Directory", false),
            ("f", "DirectoryOrCreate", false),
            ("new/dir", "DirectoryOrCreate", true),
            ("newfile", "FileOrCreate", true),
            ("no/newfile", "FileOrCreate", false),
            ("f", "Socket", false),
        ] {
            assert_eq!(check(&at(name), kind).is_ok(), ok, "{name} {kind}");
        }
        assert!(at("new/dir").is_dir() && at("newfile").is_file());
        assert!(check(Path::new("/dev/null"), "CharDevice").is_ok());
        let text = check(&at("f"), "Directory").unwrap_err().to_string();
        assert!(text.starts_with("hostPath type check failed: ") && text.ends_with("/f is not a directory"));
    }
}
