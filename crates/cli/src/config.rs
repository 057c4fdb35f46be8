//! Layers: defaults < sworn.toml < environment < flags, for every flag of every verb alike.
//!
//! The command tree is the one list of settings. Each flag gets its environment variable from its name, and the file's
//! values become defaults, so a new flag needs nothing here.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches};
use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Profile, Provider};

use crate::args::Cli;
use crate::fault::{Fault, Result};

/// Flags that the file cannot set: it would have to be read first, or they are questions, not settings.
const NOT_IN_FILE: [&str; 3] = ["config", "help", "version"];

/// Reads file, environment and arguments. `Err(Ok(_))` is clap's own message (help, version, wrong flags).
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Result<Cli, clap::Error>> {
    let file = match file_to_read(&arguments)? {
        Some(path) => read(&path)?,
        None => Dict::new(),
    };
    let command = layered(Cli::command(), &file)?;
    Ok(command.try_get_matches_from(arguments).and_then(|m| Cli::from_arg_matches(&m)))
}

/// `--config`, `SWORN_CONFIG`, ./sworn.toml or the home directory's. Only a named file must exist.
fn file_to_read(arguments: &[OsString]) -> Result<Option<PathBuf>> {
    // The flag is needed before clap runs, because the file changes what clap is told.
    let mut named: Option<PathBuf> = std::env::var_os("SWORN_CONFIG").map(PathBuf::from);
    let mut home: Option<PathBuf> = std::env::var_os("SWORN_HOME").map(PathBuf::from);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            break;
        }
        for (flag, slot) in [("--config", &mut named), ("--home", &mut home)] {
            if argument == flag {
                *slot = rest.clone().next().map(PathBuf::from);
            } else if let Some(value) = argument.to_str().and_then(|a| a.strip_prefix(flag)?.strip_prefix('=')) {
                *slot = Some(value.into());
            }
        }
    }
    if let Some(path) = named {
        return if path.is_file() {
            Ok(Some(path))
        } else {
            Err(Fault::usage(format!("no configuration file {}: check --config or SWORN_CONFIG", path.display())))
        };
    }
    let home = home.or_else(|| default_home().ok());
    Ok([Some(PathBuf::from("sworn.toml")), home.map(|h| h.join("sworn.toml"))]
        .into_iter()
        .flatten()
        .find(|path| path.is_file()))
}

/// `~/.sworn`.
pub(crate) fn default_home() -> Result<PathBuf> {
    std::env::home_dir()
        .filter(|home| !home.as_os_str().is_empty())
        .map(|home| home.join(".sworn"))
        .ok_or_else(|| Fault::usage("no home directory: set SWORN_HOME to where models and keys may be kept"))
}

fn read(path: &Path) -> Result<Dict> {
    let wrong = |e: figment::Error| Fault::usage(format!("{}: {e}", path.display()));
    let data = Figment::from(Toml::file_exact(path)).data().map_err(wrong)?;
    Ok(data.get(&Profile::Default).cloned().unwrap_or_default())
}

fn layered(command: Command, file: &Dict) -> Result<Command> {
    // Top-level lines may belong to any verb; a line that belongs to none is a slip to tell about.
    let mut used = Vec::new();
    let command = apply(command, file, file, "", &mut used)?;
    for (key, value) in file {
        if !used.contains(key) && !matches!(value, Value::Dict(..)) {
            return Err(Fault::usage(format!("sworn.toml: no flag is called {key:?}; see `sworn help`")));
        }
    }
    Ok(command)
}

/// Gives each flag of `command` and of its subcommands its variable and its default. `own` is the command's own table.
fn apply(command: Command, top: &Dict, own: &Dict, path: &str, used: &mut Vec<String>) -> Result<Command> {
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let flags: Vec<String> = command.get_arguments().filter_map(Arg::get_long).map(str::to_owned).collect();
    for (key, value) in own {
        let known = if matches!(value, Value::Dict(..)) { names.contains(key) } else { flags.contains(key) };
        if !known && (!path.is_empty() || matches!(value, Value::Dict(..))) {
            let place = if path.is_empty() { String::new() } else { format!(" under [{path}]") };
            return Err(Fault::usage(format!(
                "sworn.toml: nothing is called {key:?}{place}; see `sworn help {}`",
                path.replace('.', " ")
            )));
        }
    }
    let mut failed = None;
    let mut command = command.mut_args(|argument| {
        let Some(long) = argument.get_long().map(str::to_owned) else { return argument };
        if NOT_IN_FILE.contains(&long.as_str()) {
            return if long == "config" { argument.env("SWORN_CONFIG") } else { argument };
        }
        let variable = format!("SWORN_{}", long.to_uppercase().replace('-', "_"));
        let argument = argument.env(variable).hide_env_values(true);
        let Some(value) = own.get(&long).or_else(|| top.get(&long)) else { return argument };
        used.push(long.clone());
        // Only flags that are fractions themselves take them: amounts are written as strings, whole numbers are kept exact.
        let fractions = argument.get_value_parser().type_id() == TypeId::of::<f64>();
        let values = match value {
            Value::Array(_, list) if matches!(argument.get_action(), ArgAction::Append) => {
                list.iter().map(|v| text(v, fractions)).collect()
            }
            value => text(value, fractions).map(|v| vec![v]),
        };
        match values {
            Some(values) => argument.required(false).default_values(values),
            None => {
                failed = Some(format!("sworn.toml: {long} must be a string, a number, true or false"));
                argument
            }
        }
    });
    if let Some(message) = failed {
        return Err(Fault::usage(message));
    }
    let empty = Dict::new();
    for name in names {
        let table = match own.get(&name) {
            Some(Value::Dict(_, table)) => table,
            _ => &empty,
        };
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let mut result = Ok(());
        command = command.mut_subcommand(&name, |sub| match apply(sub.clone(), top, table, &path, used) {
            Ok(sub) => sub,
            Err(e) => {
                result = Err(e);
                sub
            }
        });
        result?;
    }
    Ok(command)
}

fn text(value: &Value, fractions: bool) -> Option<String> {
    match value {
        Value::String(_, s) => Some(s.clone()),
        Value::Bool(_, b) => Some(b.to_string()),
        Value::Num(_, n) => {
            let whole = n.to_i128().map(|n| n.to_string()).or_else(|| n.to_u128().map(|n| n.to_string()));
            whole.or_else(|| n.to_f64().filter(|_| fractions).map(|n| n.to_string()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(file: &str, arguments: &[&str]) -> Result<Cli> {
        let data = Figment::from(Toml::string(file)).data().unwrap();
        let command = layered(Cli::command(), data.get(&Profile::Default).unwrap_or(&Dict::new()))?;
        let matches = command
            .try_get_matches_from(std::iter::once(&"sworn").chain(arguments))
            .map_err(|e| Fault::usage(e.to_string()))?;
        Cli::from_arg_matches(&matches).map_err(|e| Fault::usage(e.to_string()))
    }

    fn run(cli: Cli) -> crate::args::Run {
        match cli.noun {
            crate::args::Noun::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_tree_is_well_formed() {
        layered(Cli::command(), &Dict::new()).unwrap().debug_assert();
    }

    #[test]
    fn a_flag_overrides_the_verbs_table_and_that_the_top() {
        let file = "max-tokens = 7\njson = true\n[run]\nmax-tokens = 8\n";
        let cli = with(file, &["run", "x"]).unwrap();
        assert!(cli.global.json);
        assert_eq!(run(cli).max_tokens, 8);
        assert_eq!(run(with(file, &["run", "x", "--max-tokens", "9"]).unwrap()).max_tokens, 9);
        assert_eq!(run(with("max-tokens = 7", &["run", "x"]).unwrap()).max_tokens, 7);
    }

    #[test]
    fn fractions_and_lists() {
        let cli =
            run(with("temperature = 0.7\ntop-p = \"0.9\"\n[run]\nstop = [\"a\", \"b\"]\n", &["run", "x"]).unwrap());
        assert_eq!((cli.sampling.temperature, cli.sampling.top_p), (Some(0.7), Some(0.9)));
        assert_eq!(cli.stop, ["a", "b"]);
        assert_eq!(run(with("stop = \"a\"", &["run", "x", "--stop", "c"]).unwrap()).stop, ["c"]);
        // A fraction of a token, or an amount through a float.
        assert!(with("max-tokens = 7.5", &["run", "x"]).is_err());
        assert!(with("max-price = 0.5", &["ask", "x"]).is_err());
        assert!(with("max-tokens = [1]", &["run", "x"]).is_err());
    }

    #[test]
    fn a_required_flag_may_come_from_the_file() {
        assert!(with("", &["node", "register"]).is_err());
        assert!(with("endpoint = \"http://n\"", &["node", "register"]).is_ok());
    }

    #[test]
    fn slips_in_the_file_are_named() {
        for (file, named) in
            [("max-token = 7", "max-token"), ("[run]\nfoo = 1", "foo"), ("[rum]\nx = 1", "rum"), ("json = [1]", "json")]
        {
            let error = with(file, &["run", "x"]).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
            assert_eq!(error.code(), 2);
        }
    }
}
