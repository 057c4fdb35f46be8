//! The one owner of stdout. Everything that is not a result goes to stderr.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::fault::{Fault, Result};

/// Where a verb puts its result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether the result is wanted as JSON.
    pub(crate) fn json(self) -> bool {
        self.json
    }

    /// The whole result: an object, or the text a person reads.
    pub(crate) fn result<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        if self.json { write(&serde_json::to_string_pretty(value)?, true) } else { write(&text(value), true) }
    }

    /// One line of a log.
    pub(crate) fn line<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        if self.json { write(&serde_json::to_string(value)?, true) } else { write(&text(value), true) }
    }

    /// A piece of a text as it arrives; nothing in JSON, where the result carries it whole.
    pub(crate) fn stream(self, piece: &str) -> Result<()> {
        if self.json { Ok(()) } else { write(piece, false) }
    }
}

/// Reports to a person, on stderr.
pub(crate) fn note(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
}

/// Whether stderr is a terminal, so that progress may be drawn on it.
pub(crate) fn interactive() -> bool {
    io::stderr().is_terminal() && std::env::var_os("CI").is_none()
}

fn write(text: &str, end: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| if end { out.write_all(b"\n") } else { Ok(()) });
    match written.and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(Fault::nobody_reads()),
        Err(e) => Err(Fault::from(e).while_doing("cannot write the result to stdout")),
    }
}

/// An unframed table, as terminals and pipes both take it.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}
