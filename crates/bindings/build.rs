//! Joins the contracts' interfaces into one `sol!` invocation, because the macro does not follow imports, and lists every
//! custom error with its `@notice`, because that is the text a reader of a revert needs.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

/// Ordered so that a reader of the output meets a type before its use; the macro does not care.
const FILES: [&str; 9] = ["ITrees", "IModels", "INodes", "ICourt", "IMarket", "IStepVerifier", "IChannels", "ITrials", "IChallenges"];

fn main() {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR").unwrap_or_default()).join("../../contracts/interfaces");
    println!("cargo::rerun-if-changed={}", root.display());
    println!("cargo::rerun-if-changed=sol/External.sol");

    let mut source = String::new();
    let mut notices = String::from("const NOTICES: &[(&str, &str, &str)] = &[\n");
    for file in FILES.map(|f| root.join(format!("{f}.sol"))).into_iter().chain(["sol/External.sol".into()]) {
        println!("cargo::rerun-if-changed={}", file.display());
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        read(&text, &mut source, &mut notices);
    }
    notices.push_str("];\n");

    let out = env::var("OUT_DIR").unwrap_or_default();
    let sol = format!("alloy::sol! {{\n#![sol(rpc, abi, all_derives)]\n{source}\n}}\n");
    for (name, text) in [("interfaces.rs", sol), ("notices.rs", notices)] {
        let path = Path::new(&out).join(name);
        fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

/// Copies a file's code without comments, pragmas and imports; collects (interface, error, notice).
fn read(text: &str, source: &mut String, notices: &mut String) {
    let mut interface = "";
    let mut notice = String::new();
    let mut in_notice = false;
    let mut skipping = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(doc) = trimmed.strip_prefix("///") {
            let doc = doc.trim();
            if let Some(text) = doc.strip_prefix("@notice") {
                notice = text.trim().to_owned();
                in_notice = true;
            } else if doc.starts_with('@') {
                in_notice = false;
            } else if in_notice {
                notice.push(' ');
                notice.push_str(doc);
            }
            continue;
        }
        in_notice = false;
        if skipping || trimmed.starts_with("import") || trimmed.starts_with("pragma") {
            skipping = !trimmed.ends_with(';');
            continue;
        }
        if trimmed.is_empty() {
            continue;
        }
        let code = match trimmed.find("//") {
            Some(at) => trimmed[..at].trim(),
            None => trimmed,
        };
        let name = |prefix: &str| {
            code.strip_prefix(prefix).and_then(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next())
        };
        if let Some(i) = name("interface ") {
            interface = i;
        }
        if let Some(error) = name("error ") {
            let _ = writeln!(notices, "    ({interface:?}, {error:?}, {notice:?}),");
        }
        notice.clear();
        source.push_str(code);
        source.push('\n');
    }
}
