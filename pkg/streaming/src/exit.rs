//! What the error channel says when a command has ended: a `metav1.Status` as JSON, or plain text for protocols before v4.

use serde_json::{Value, json};

/// How a remote command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ran and ended with this exit code.
    Exited(i32),
    /// It could not be run, or its streams failed.
    Failed(String),
}

impl Outcome {
    /// The `Status` of `v4.channel.k8s.io` and later.
    pub fn status(&self) -> Value {
        match self {
            Outcome::Exited(0) => json!({"metadata": {}, "status": "Success"}),
            Outcome::Exited(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.text(),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Outcome::Failed(why) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {why}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": why}]},
                "code": 500,
            }),
        }
    }

    /// The text of protocols before v4; empty for success.
    pub fn text(&self) -> String {
        match self {
            Outcome::Exited(0) => String::new(),
            Outcome::Exited(code) => {
                format!("command terminated with non-zero exit code: command terminated with exit code {code}")
            }
            Outcome::Failed(why) => why.clone(),
        }
    }

    pub(crate) fn bytes(&self, as_status: bool) -> Vec<u8> {
        if as_status { self.status().to_string().into_bytes() } else { self.text().into_bytes() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_non_zero_exit_carries_its_code_as_a_cause() {
        let s = Outcome::Exited(42).status();
        assert_eq!(s["reason"], "NonZeroExitCode");
        assert_eq!(s["details"]["causes"], json!([{"reason": "ExitCode", "message": "42"}]));
        assert_eq!(Outcome::Exited(0).status()["status"], "Success");
        assert!(Outcome::Exited(0).bytes(false).is_empty());
    }
}
