//! Unsafe code stands only where lib.rs says, with its reason: the compiler denies it everywhere
//! else, and this test sees to it that no module lifts that unnoticed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Source files that lift the lint, as modules such as `model::kv_cache`.
fn lifting(folder: &Path, source: &Path, modules: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            lifting(&path, source, modules);
        } else if path.extension().is_some_and(|e| e == "rs")
            && fs::read_to_string(&path).unwrap().contains("unsafe_code")
        {
            let module = path.strip_prefix(source).unwrap().with_extension("");
            let parts = module.iter().map(|part| part.to_str().unwrap());
            let parts: Vec<&str> = parts.filter(|part| *part != "mod").collect();
            modules.insert(parts.join("::"));
        }
    }
}

/// Names in backticks in the section about unsafe code that are modules.
fn listed(source: &Path) -> BTreeSet<String> {
    let lib = fs::read_to_string(source.join("lib.rs")).unwrap();
    let (_, section) = lib.split_once("//! # Unsafe code\n").unwrap();
    let section: String = section
        .lines()
        .take_while(|l| l.starts_with("//!"))
        .collect();
    let is_module = |name: &&str| {
        let path = source.join(name.replace("::", "/"));
        path.with_extension("rs").is_file() || path.join("mod.rs").is_file()
    };
    let names = section.split('`').skip(1).step_by(2);
    names.filter(is_module).map(str::to_owned).collect()
}

#[test]
fn lib_rs_lists_every_module_that_lifts_the_lint_and_no_other() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules = BTreeSet::new();
    lifting(&source, &source, &mut modules);
    assert!(modules.contains("model::kv_cache"), "{modules:?}");
    assert_eq!(modules, listed(&source));
}
