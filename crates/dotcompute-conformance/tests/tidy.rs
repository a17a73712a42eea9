//! Rules of the source that no compiler checks.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Every source of the workspace in Rust or CUDA C++, with its text.
fn sources() -> Vec<(PathBuf, String)> {
    const EXTENSIONS: [&str; 4] = ["rs", "cuh", "cu", "cpp"];
    fn visit(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).expect("a folder of the workspace should be readable") {
            let path = entry.expect("an entry should be readable").path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    visit(&path, found);
                }
            } else if path.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| *known == e)) {
                let text = fs::read_to_string(&path).expect("a source should be UTF-8");
                found.push((path, text));
            }
        }
    }
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    visit(&crates, &mut found);
    assert!(found.len() > 30, "the sources should be found");
    found
}

#[test]
fn only_the_mailbox_names_the_atomics_of_std() {
    let mut offenders = Vec::new();
    for (path, text) in sources() {
        let name = path.to_string_lossy();
        let exempt = name.ends_with("dotcompute-mailbox/src/sync.rs")
            || path.ends_with("tests/tidy.rs")
            || name.contains("dotcompute-bench")
            || name.contains("dotcompute-mailbox/tests");
        if !exempt && (text.contains("std::sync::atomic") || text.contains("core::sync::atomic")) {
            offenders.push(path);
        }
    }
    assert!(offenders.is_empty(), "take them from dotcompute_mailbox::sync: {offenders:?}");
}

/// Each happens-before edge has a name, written at both of its ends.
#[test]
fn every_synchronisation_edge_is_named_at_both_ends() {
    let mut edges: BTreeMap<String, (bool, bool)> = BTreeMap::new();
    for (path, text) in sources() {
        if path.ends_with("tests/tidy.rs") {
            continue;
        }
        // A mark may be broken over lines of one comment.
        let joined = text.replace("// ", " ").replace(['\n', '\t'], " ");
        for mark in joined.split("SYNC(").skip(1) {
            let Some((name, rest)) = mark.split_once(')') else { continue };
            let role: String =
                rest.trim_start().chars().take(60).collect::<String>().to_lowercase();
            let role = role.split(':').next().unwrap_or_default().to_owned();
            let edge = edges.entry(name.to_owned()).or_default();
            let both = role.contains("acqrel") || role.contains("seqcst");
            edge.0 |= role.contains("release") || both;
            edge.1 |= role.contains("acquire") || both;
        }
    }
    assert!(edges.len() > 5, "the edges should be found: {edges:?}");
    let open: Vec<_> =
        edges.iter().filter(|(_, (release, acquire))| !release || !acquire).collect();
    assert!(open.is_empty(), "edges that lack an end (name, (release, acquire)): {open:?}");
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_for_later() {
    let marks = ["#[ignore", "todo!(", "unimplemented!(", "allow(dead_code)", "FIXME", "TODO"];
    let mut found = Vec::new();
    for (path, text) in sources() {
        if path.ends_with("tests/tidy.rs") {
            continue;
        }
        for mark in marks {
            if text.contains(mark) {
                found.push((path.clone(), mark));
            }
        }
    }
    assert!(found.is_empty(), "{found:?}");
}
