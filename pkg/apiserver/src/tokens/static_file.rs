//! `--token-auth-file`: a table of tokens and users, read once: `token,user,uid,"group1,group2"`.

use super::{Known, Remarks, TokenSource, implicit};
use crate::ApiServer;
use async_trait::async_trait;
use isopod_api::UserInfo;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error("cannot read the token file {0:?}")]
    Read(PathBuf, #[source] io::Error),
    #[error("token file {0:?}, line {1}: write at least 3 columns (token, user name, user uid)")]
    Columns(PathBuf, usize),
}

pub struct StaticTokens(HashMap<String, UserInfo>);

impl StaticTokens {
    pub fn read(path: &Path) -> Result<Self, TokenFileError> {
        let text = std::fs::read_to_string(path).map_err(|e| TokenFileError::Read(path.to_owned(), e))?;
        let mut tokens = HashMap::new();
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let columns = columns(line);
            let [token, name, uid, rest @ ..] = columns.as_slice() else {
                return Err(TokenFileError::Columns(path.to_owned(), i + 1));
            };
            if token.is_empty() {
                tracing::warn!(file = %path.display(), line = i + 1, "an empty token is left out");
                continue;
            }
            let groups = rest.first().map(String::as_str).unwrap_or_default();
            let groups = groups.split(',').map(str::trim).filter(|g| !g.is_empty()).map(str::to_owned).collect();
            let user = UserInfo { name: name.clone(), uid: uid.clone(), groups, ..Default::default() };
            if tokens.insert(token.clone(), user).is_some() {
                tracing::warn!(file = %path.display(), line = i + 1, "a token is there twice; the last one counts");
            }
        }
        Ok(StaticTokens(tokens))
    }
}

/// The columns of a line of comma-separated values (RFC 4180).
fn columns(line: &str) -> Vec<String> {
    let (mut all, mut current, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                current.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => all.push(std::mem::take(&mut current)),
            // A column's leading blanks are not part of it.
            ' ' if !quoted && current.is_empty() => {}
            c => current.push(c),
        }
    }
    all.push(current);
    all
}

#[async_trait]
impl TokenSource for StaticTokens {
    async fn known(
        &self,
        server: &ApiServer,
        token: &str,
        audiences: &[String],
        _remarks: &Remarks<'_>,
    ) -> Result<Option<Known>, String> {
        let (Some(user), Some(audiences)) = (self.0.get(token), implicit(server, audiences)) else { return Ok(None) };
        Ok(Some(Known { user: user.clone(), audiences }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_tokens() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc,jane,7,\"dev, ops\"\n\ndef,joe,\"8\"\n,nobody,9\n").unwrap();
        let tokens = StaticTokens::read(file.path()).unwrap().0;
        assert_eq!(tokens.len(), 2);
        assert_eq!(
            tokens["abc"],
            UserInfo {
                name: "jane".into(),
                uid: "7".into(),
                groups: vec!["dev".into(), "ops".into()],
                ..Default::default()
            }
        );
        assert_eq!(tokens["def"].uid, "8");
        std::fs::write(file.path(), "abc,jane\n").unwrap();
        assert!(StaticTokens::read(file.path()).is_err());
        assert_eq!(columns(r#"a,"b ""c""",d"#), ["a", "b \"c\"", "d"]);
    }
}
