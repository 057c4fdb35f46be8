//! The reference in docs/reference is what the code says: the contracts' NatSpec, the programs' help, the crates' pages on HTTP. After a
//! change: `SWORN_REFERENCE_UPDATE=1 cargo nextest run --workspace -E 'binary(reference)'`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sworn_testkit::devnet::root;
use sworn_testkit::scenario::sworn;

/// Compares, or with the variable set writes.
fn holds(name: &str, text: &str) {
    let file = root().join("docs/reference").join(name);
    if std::env::var_os("SWORN_REFERENCE_UPDATE").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    let differs = written.lines().zip(text.lines()).position(|(a, b)| a != b);
    assert!(
        written == text,
        "docs/reference/{name} is not what the code says (line {differs:?}): run this test with SWORN_REFERENCE_UPDATE=1"
    );
}

/// `name(type a, type b)` of an entry of an ABI, with the components of structs' names.
fn signature(entry: &Value) -> String {
    let list = |key: &str| {
        let all = entry[key].as_array().into_iter().flatten().map(|p| {
            let internal = p["internalType"].as_str().unwrap_or_default();
            let kind = internal.rsplit([' ', '.']).next().filter(|k| !k.is_empty()).unwrap_or_default();
            let indexed = if p["indexed"] == true { " indexed" } else { "" };
            format!("{kind}{indexed} {}", p["name"].as_str().unwrap_or_default()).trim_end().to_owned()
        });
        all.collect::<Vec<_>>().join(", ")
    };
    let mut text = format!("{}({})", entry["name"].as_str().unwrap_or_default(), list("inputs"));
    if let Some(view @ ("view" | "pure" | "payable")) = entry["stateMutability"].as_str() {
        write!(text, " {view}").unwrap();
    }
    let returned = list("outputs");
    if !returned.is_empty() {
        write!(text, " → {returned}").unwrap();
    }
    text
}

/// `name(uint256,…)`, as the compiler's documentation and the selectors name an entry.
fn canonical(entry: &Value) -> String {
    fn kind(p: &Value) -> String {
        let name = p["type"].as_str().unwrap_or_default();
        match name.strip_prefix("tuple") {
            Some(array) => {
                let parts: Vec<_> = p["components"].as_array().into_iter().flatten().map(kind).collect();
                format!("({}){array}", parts.join(","))
            }
            None => name.to_owned(),
        }
    }
    let inputs: Vec<_> = entry["inputs"].as_array().into_iter().flatten().map(kind).collect();
    format!("{}({})", entry["name"].as_str().unwrap_or_default(), inputs.join(","))
}

fn interface(name: &str, text: &mut String) {
    let path = root().join(format!("out/{name}.sol/{name}.json"));
    let artifact =
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}: run `forge build`", path.display()));
    let artifact: Value = serde_json::from_str(&artifact).unwrap();
    let (user, dev) = (&artifact["metadata"]["output"]["userdoc"], &artifact["metadata"]["output"]["devdoc"]);
    writeln!(text, "\n## {name}\n").unwrap();
    for part in [&user["notice"], &dev["details"]] {
        if let Some(part) = part.as_str() {
            writeln!(text, "{part}\n").unwrap();
        }
    }
    for (title, kind, docs) in
        [("Functions", "function", "methods"), ("Events", "event", "events"), ("Errors", "error", "errors")]
    {
        let abi = artifact["abi"].as_array().unwrap();
        let mut entries: Vec<_> = abi.iter().filter(|e| e["type"] == kind).collect();
        entries.sort_by_key(|e| canonical(e));
        if entries.is_empty() {
            continue;
        }
        writeln!(text, "### {title}\n").unwrap();
        for entry in entries {
            let key = canonical(entry);
            write!(text, "- `{}`", signature(entry)).unwrap();
            if let Some(selector) = artifact["methodIdentifiers"][&key].as_str() {
                write!(text, " `0x{selector}`").unwrap();
            }
            // An error may have several of each.
            let of = |docs: &Value| match docs {
                Value::Array(all) => all.first().cloned().unwrap_or_default(),
                one => one.clone(),
            };
            let (user, dev) = (of(&user[docs][&key]), of(&dev[docs][&key]));
            for part in [&user["notice"], &dev["details"]] {
                if let Some(part) = part.as_str() {
                    write!(text, "  \n  {part}").unwrap();
                }
            }
            for (name, what) in dev["params"].as_object().into_iter().flatten() {
                write!(text, "  \n  `{name}`: {}", what.as_str().unwrap_or_default()).unwrap();
            }
            text.push('\n');
        }
        text.push('\n');
    }
}

#[test]
fn contracts() {
    let mut text = "# Contracts\n\nGenerated from `contracts/interfaces`; do not edit. Amounts are in the token's smallest unit, times in \
                    seconds. How they work together is in [protocol.md](../protocol.md), what calls cost in [gas.md](../gas.md).\n"
        .to_owned();
    for name in ["IModels", "INodes", "ICourt", "IMarket", "IChannels", "ITrials", "IChallenges", "IStepVerifier"] {
        interface(name, &mut text);
    }
    holds("contracts.md", &(text.trim_end().to_owned() + "\n"));
}

/// A verb's help and that of its own verbs.
fn help(verbs: &[String], text: &mut String) {
    let mut command = Command::new(sworn().unwrap());
    // Neither the width of a terminal nor this machine's settings decide.
    command.args(verbs).arg("-h").env_clear().env("COLUMNS", "120").env("HOME", "/home/me");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{verbs:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    // What every verb takes is said once.
    let own = told.split("\nEverywhere:").next().filter(|_| !verbs.is_empty()).unwrap_or(&told);
    writeln!(text, "\n## sworn {}\n\n```text\n{}\n```", verbs.join(" "), own.trim_end()).unwrap();
    let commands = told.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| l.starts_with("  "));
    for line in commands {
        // A continued description is indented further.
        let Some(verb) = line.strip_prefix("  ").filter(|l| !l.starts_with(' ')) else { continue };
        let verb = verb.split_whitespace().next().unwrap();
        if verb != "help" {
            help(&[verbs, &[verb.to_owned()]].concat(), text);
        }
    }
}

#[test]
fn command_line() {
    let mut text = "# Command line\n\nGenerated from the program's own help; do not edit. `--help` says more of each, `sworn man` writes it all as manual pages. Every flag is \
                    also an environment variable and a line in `sworn.toml`.\n"
        .to_owned();
    help(&[], &mut text);
    assert!(text.matches("\n## ").count() > 30, "{text}");
    holds("cli.md", &text.replace("## sworn \n", "## sworn\n"));
}

/// A file's opening comment.
fn page(file: &str) -> String {
    let source = std::fs::read_to_string(root().join(Path::new("crates").join(file))).unwrap();
    let lines = source.lines().map_while(|l| l.strip_prefix("//!")).map(|l| l.strip_prefix(' ').unwrap_or(l));
    lines.fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn http() {
    let mut text = "# HTTP\n\nGenerated from the front pages of the crates that serve it; do not edit.\n".to_owned();
    for (title, file) in [
        ("The gateway", "gateway/src/lib.rs"),
        ("A node", "node/src/lib.rs"),
        ("A node's channels", "receipts/src/wire.rs"),
        ("Monitoring", "ops/src/lib.rs"),
    ] {
        // Links of rustdoc mean nothing here.
        let page = page(file).replace("\n# ", "\n### ").replace("[`", "`").replace("`]", "`");
        writeln!(text, "\n## {title}\n\n{}", page.trim_end()).unwrap();
    }
    holds("http.md", &text);
}
