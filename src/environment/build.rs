//! Which build of this tool ran. The values come from the build script.

use serde::{Deserialize, Serialize};

/// Identity of one build; two nodes with equal builds run the same machine code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Build {
    pub tool_version: String,
    /// Short commit hash, `-dirty` where tracked files differed from it, `unknown` without git.
    pub git_revision: String,
    /// `release`, or `debug` with debug assertions on: then no time it measured is worth quoting.
    pub profile: String,
    /// Target triple.
    pub target: String,
    /// Instruction sets the compiler took for granted, comma-separated.
    pub target_features: String,
    /// The compiler as it names itself.
    pub rustc: String,
}

impl Build {
    /// The build that is running.
    pub fn this() -> Self {
        let known = |value: Option<&str>| value.unwrap_or("unknown").to_owned();
        let profile = if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        };
        Self {
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            git_revision: known(option_env!("DISAGG_GIT_REVISION")),
            profile: profile.to_owned(),
            target: known(option_env!("DISAGG_TARGET")),
            target_features: known(option_env!("DISAGG_TARGET_FEATURES")),
            rustc: known(option_env!("DISAGG_RUSTC")),
        }
    }

    /// Whether its times are worth anything.
    pub fn is_optimised(&self) -> bool {
        self.profile == "release"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_script_filled_every_value() {
        let build = Build::this();
        assert_eq!(build.tool_version, env!("CARGO_PKG_VERSION"));
        assert_eq!(build.is_optimised(), !cfg!(debug_assertions));
        assert!(build.rustc.starts_with("rustc 1."), "{}", build.rustc);
        assert!(build.target.contains('-'), "{}", build.target);
        assert!(!build.git_revision.is_empty());
        if cfg!(target_arch = "x86_64") {
            assert!(build.target_features.contains("sse2"));
        }
    }
}
