//! What the README and the design promise of the source, checked on the source itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// All source files below src/, by their path within it.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root().join("src")).unwrap().display().to_string();
                found.insert(name, read(&path));
            }
        }
    }
    assert!(found.len() > 10);
    found
}

/// The rows of the README's table of dependencies: the crates of a row, and the files that it allows.
fn dependency_rows() -> Vec<(Vec<String>, Vec<String>)> {
    let readme = read(&root().join("README.md"));
    let table = readme.split_once("\n## Dependencies\n").unwrap().1.split_once("\n## ").unwrap().0;
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let crates = cells[0].split(" with ").next().unwrap().split(',');
        let crates = crates.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        let files = cells[2].split(',').map(|file| file.trim().trim_matches('`').to_owned()).collect();
        (crates, files)
    })
    .collect()
}

#[test]
fn every_dependency_has_its_reason_and_its_one_file() {
    let manifest = read(&root().join("Cargo.toml"));
    let section = manifest.split_once("[dependencies]\n").unwrap().1.split_once("\n[").unwrap().0;
    let mut declared: Vec<_> =
        section.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name).collect();
    let rows = dependency_rows();
    let mut listed: Vec<_> = rows.iter().flat_map(|(crates, _)| crates.iter().map(String::as_str)).collect();
    declared.sort_unstable();
    listed.sort_unstable();
    assert_eq!(declared, listed, "Cargo.toml and the README's table differ");

    for (file, source) in sources() {
        for (crates, homes) in &rows {
            let at_home = homes.iter().any(|home| file == *home || (home.ends_with('/') && file.starts_with(home)));
            for name in crates.iter().map(|name| name.replace('-', "_")) {
                // `base64url::` is not `url::`.
                let path = format!("{name}::");
                let is_part = |at: usize| source[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
                let named = source.match_indices(&path).any(|(at, _)| !is_part(at));
                assert!(at_home || !named, "{name} is named in {file}; its place is {homes:?}");
            }
        }
    }
}

#[test]
fn every_reason_of_the_log_is_in_the_readme() {
    let readme = read(&root().join("README.md"));
    let log = readme.split_once("\n## The log\n").unwrap().1.split_once("\n## ").unwrap().0;
    let mut count = 0;
    for (file, source) in sources() {
        let code = source.split("#[cfg(test)]").next().unwrap();
        for before in [
            "refuse(",
            "reason: ",
            "Answer::new(",
            "Err(",
            "problem(pages, request, ",
            "wrong(visit, ",
            "ok_or(",
            "map_err(|_| ",
        ] {
            for piece in code.split(before).skip(1) {
                // A status may come first.
                let text = piece.trim_start_matches(|c: char| c.is_ascii_digit() || c == ',' || c == ' ');
                let Some(word) = text.strip_prefix('"').and_then(|text| text.split('"').next()) else { continue };
                let is_word = !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
                if !is_word || (before == "refuse(" && !word.starts_with("gate-")) {
                    continue;
                }
                let shown = word.trim_start_matches("gate-");
                assert!(log.contains(&format!("`{shown}`")), "the README lacks the reason {word} of {file}");
                count += 1;
            }
        }
    }
    assert!(count > 40, "only {count} reasons found: does this test still read the source rightly?");
}

#[test]
fn each_file_opens_with_what_it_does() {
    for (file, source) in sources() {
        assert!(source.starts_with("//! "), "src/{file} does not say what it does");
    }
}

/// The fuzz targets are built from the program's own sources.
#[test]
fn the_fuzz_targets_have_the_dependencies_of_the_program() {
    let dependencies = |path: &str| -> Vec<String> {
        let manifest = read(&root().join(path));
        let section = manifest.split_once("[dependencies]\n").unwrap().1.split_once("\n[").unwrap().0;
        section
            .lines()
            .filter(|line| line.contains(" = ") && !line.starts_with("libfuzzer-sys"))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(dependencies("tests/fuzz/Cargo.toml"), dependencies("Cargo.toml"));
}
