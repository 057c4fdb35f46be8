//! The report as a page and as a summary for a terminal.

use std::fmt::Write;

use crate::output;

use super::report::{ByThreads, Report};
use super::stat::Stat;

/// What a person reads after the run.
pub(super) fn summary(report: &Report) -> String {
    let mut table = output::table(["", "median", "least", "most", "runs"]);
    for (what, stat, unit) in headlines(report) {
        let cells = match stat {
            Some(s) => [figure(s.median, unit), figure(s.min, unit), figure(s.max, unit), s.n.to_string()],
            None => ["not measured", "", "", ""].map(str::to_owned),
        };
        table.add_row(std::iter::once(what.to_owned()).chain(cells));
    }
    for (what, by_engine) in [("prefill", &report.prefill_tok_s), ("decode", &report.decode_tok_s)] {
        for (engine, threads, s) in flat(by_engine) {
            let what = format!("{what} tok/s, {}, {}", engine_name(engine), count(threads));
            table.add_row([what, number(s.median), number(s.min), number(s.max), s.n.to_string()]);
        }
    }
    table.to_string()
}

/// The figures that stand first.
fn headlines(report: &Report) -> [(&'static str, Option<Stat>, Unit); 8] {
    [
        ("decode, ours / llama.cpp", report.decode_ratio_llamacpp, Unit::Ratio),
        ("prefill, ours / llama.cpp", report.prefill_ratio_llamacpp, Unit::Ratio),
        ("decode under oath, ours / llama.cpp", report.decode_ratio_llamacpp_oath, Unit::Ratio),
        ("prefill under oath, ours / llama.cpp", report.prefill_ratio_llamacpp_oath, Unit::Ratio),
        ("the oath's price, decode", report.oath_overhead_decode, Unit::Share),
        ("the oath's price, prefill", report.oath_overhead_prefill, Unit::Share),
        ("time of an audit / of the answer", report.audit_over_generate, Unit::Ratio),
        ("perplexity over the float reading's", report.ppl_delta_percent, Unit::Percent),
    ]
}

#[derive(Clone, Copy)]
enum Unit {
    /// A quotient.
    Ratio,
    /// A share, to print in percent.
    Share,
    /// Percent already.
    Percent,
}

fn figure(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Ratio => format!("{value:.2}"),
        Unit::Share => format!("{:+.1} %", value * 100.0),
        Unit::Percent => format!("{value:+.2} %"),
    }
}

/// Three digits of a rate.
fn number(value: f64) -> String {
    if value.abs() < 10.0 {
        format!("{value:.2}")
    } else if value.abs() < 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

fn count(threads: usize) -> String {
    if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") }
}

fn engine_name(key: &str) -> &str {
    match key {
        "ours" => "Sworn",
        "ours_oath" => "Sworn under oath",
        "llamacpp" => "llama.cpp",
        other => other,
    }
}

fn flat(by_engine: &std::collections::BTreeMap<String, ByThreads>) -> impl Iterator<Item = (&str, usize, &Stat)> {
    by_engine.iter().flat_map(|(engine, by)| by.iter().map(move |(threads, stat)| (engine.as_str(), *threads, stat)))
}

/// `docs/benchmarks.md`.
pub(super) fn page(report: &Report) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write_page(&mut page, report);
    page
}

fn write_page(w: &mut String, r: &Report) -> std::fmt::Result {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    writeln!(w, "# Benchmarks\n")?;
    writeln!(
        w,
        "Written by `make bench`; not edited by hand. Every figure is a median with the least and the greatest value"
    )?;
    writeln!(w, "and the number of measurements behind it.\n")?;
    let h = &r.host;
    writeln!(w, "| | |\n|---|---|")?;
    writeln!(w, "| machine | {}, {} processors, {:.0} GiB; {} |", h.cpu, h.processors, gib(h.memory_bytes), h.os)?;
    writeln!(w, "| date | {} |", h.date)?;
    writeln!(w, "| model | {} (`{}`) |", r.model, r.model_id)?;
    writeln!(w, "| backend | {}: {} |", r.backend, r.adapter)?;
    let versions: Vec<String> = r.versions.iter().map(|(name, v)| format!("{} {v}", engine_name(name))).collect();
    writeln!(w, "| versions | {} |", versions.join(", "))?;
    let kind = if r.quick { " (`--quick`: few repetitions, no larger models)" } else { "" };
    writeln!(w, "| run | {} s{kind}; processors {:.0} % busy before it |", r.seconds, h.busy_before * 100.0)?;

    writeln!(w, "\n## Headlines\n")?;
    writeln!(w, "| | median | least | most | n |\n|---|---:|---:|---:|---:|")?;
    for (what, stat, unit) in headlines(r) {
        match stat {
            Some(s) => {
                let cells = [s.median, s.min, s.max].map(|v| figure(v, unit));
                writeln!(w, "| {what} | **{}** | {} | {} | {} |", cells[0], cells[1], cells[2], s.n)?;
            }
            None => writeln!(w, "| {what} | not measured | | | |")?,
        }
    }
    if let Some(equal) = r.trace_root_equals_cpu {
        let verdict = if equal { "the same as" } else { "**not** that of" };
        writeln!(w, "\nThe trace root of the audited answer is {verdict} the `cpu` backend.")?;
    }

    writeln!(w, "\n## Speed\n")?;
    writeln!(
        w,
        "A prompt of {} tokens, and {} tokens decoded from a single one on (llama-bench's pp{} and tg{}), in tokens per second.\n",
        r.prompt_tokens, r.decoded_tokens, r.prompt_tokens, r.decoded_tokens
    )?;
    writeln!(
        w,
        "| engine | threads | prefill | least–most | decode | least–most | n |\n|---|---:|---:|---:|---:|---:|---:|"
    )?;
    for (engine, threads, prefill) in flat(&r.prefill_tok_s) {
        let Some(decode) = r.decode_tok_s.get(engine).and_then(|by| by.get(&threads)) else { continue };
        let cells = [prefill, decode].map(|s| (number(s.median), format!("{}–{}", number(s.min), number(s.max))));
        let [(p, p_range), (d, d_range)] = cells;
        writeln!(w, "| {} | {threads} | {p} | {p_range} | {d} | {d_range} | {} |", engine_name(engine), prefill.n)?;
    }
    writeln!(w, "\n| engine | first token of that prompt, ms | peak memory, MiB |\n|---|---:|---:|")?;
    for (engine, first) in &r.time_to_first_token_ms {
        let peak = r
            .peak_memory_bytes
            .get(engine)
            .map_or("–".to_owned(), |b| format!("{:.0}", *b as f64 / f64::from(1 << 20)));
        writeln!(w, "| {} | {} | {peak} |", engine_name(engine), number(first.median))?;
    }
    if let Some(load) = r.load_ms {
        writeln!(w, "\nStarting a process and loading the model takes Sworn {load:.0} ms.")?;
    }

    if let Some(b) = &r.bandwidth {
        writeln!(w, "\n## What the memory allows\n")?;
        writeln!(
            w,
            "A decoded token reads every weight once, so memory bandwidth bounds decoding. Streaming reads through a buffer"
        )?;
        let rates: Vec<String> =
            b.bytes_per_s.iter().map(|(t, s)| format!("{:.1} GB/s on {}", s.median / 1e9, count(*t))).collect();
        writeln!(w, "of {} MiB, in the same run: {}.\n", b.buffer_bytes >> 20, rates.join(", "))?;
        writeln!(w, "| engine | MB per token | limit, tok/s | reached |\n|---|---:|---:|---:|")?;
        for (engine, bytes) in &b.bytes_per_token {
            let limit = b.limit_tok_s.get(engine).map_or("–".to_owned(), |l| number(*l));
            let share = b.share.get(engine).map_or("–".to_owned(), |s| format!("{:.0} %", s * 100.0));
            writeln!(w, "| {} | {:.1} | {limit} | {share} |", engine_name(engine), *bytes as f64 / 1e6)?;
        }
    }

    if let Some(a) = &r.audit {
        writeln!(w, "\n## Audit\n")?;
        let time = |s: &Option<Stat>| s.map_or("–".to_owned(), |s| format!("{:.2} s", s.median));
        writeln!(
            w,
            "{} tokens in, {} out: generating under oath takes {}, auditing the answer {}.",
            a.prompt_tokens,
            a.output_tokens,
            time(&a.generate_s),
            time(&a.audit_s)
        )?;
    }
    if let Some(p) = &r.perplexity {
        writeln!(w, "\n## Perplexity\n")?;
        writeln!(
            w,
            "On {} tokens of *Persuasion* in windows of {}: integer {:.3}, float reading of the same file {:.3}: {:+.2} % ± {:.2}.\nThe likeliest token is the same in {:.1} % of the positions.",
            p.tokens,
            p.window,
            p.integer,
            p.float,
            p.delta_percent,
            p.standard_error,
            p.top1_agreement * 100.0
        )?;
    }

    if !r.context.is_empty() {
        writeln!(w, "\n## Growing contexts\n")?;
        writeln!(w, "Tokens per second at the end of a context, {}.\n", count(r.threads))?;
        writeln!(
            w,
            "| positions | prefill, Sworn | llama.cpp | decode, Sworn | llama.cpp |\n|---:|---:|---:|---:|---:|"
        )?;
        for c in &r.context {
            let cell = |by: &std::collections::BTreeMap<String, f64>, engine: &str| {
                by.get(engine).map_or("–".to_owned(), |v| number(*v))
            };
            let [p, d] = [&c.prefill_tok_s, &c.decode_tok_s].map(|by| (cell(by, "ours"), cell(by, "llamacpp")));
            writeln!(w, "| {} | {} | {} | {} | {} |", c.positions, p.0, p.1, d.0, d.1)?;
        }
    }
    if !r.sizes.is_empty() {
        writeln!(w, "\n## Growing models\n")?;
        writeln!(
            w,
            "Random weights in the matrices of a real model; of the larger ones as many layers as fit, and a smaller vocabulary."
        )?;
        writeln!(
            w,
            "The last two columns are **extrapolated**: the measured figures times the share of the weights that ran.\n"
        )?;
        writeln!(
            w,
            "| size | layers run | weights run | prefill | decode | prefill, whole | decode, whole |\n|---|---:|---:|---:|---:|---:|---:|"
        )?;
        for s in &r.sizes {
            let cell = |s: &Option<Stat>| s.map_or("–".to_owned(), |s| number(s.median));
            let share = s.weights_run as f64 / s.weights as f64 * 100.0;
            writeln!(
                w,
                "| {} | {} of {} | {:.0} M ({share:.0} %) | {} | {} | {} | {} |",
                s.shape,
                s.layers_run,
                s.layers,
                s.weights_run as f64 / 1e6,
                cell(&s.prefill_tok_s),
                cell(&s.decode_tok_s),
                cell(&s.prefill_tok_s_whole),
                cell(&s.decode_tok_s_whole)
            )?;
        }
    }
    if let Some(c) = &r.concurrency {
        writeln!(w, "\n## Several answers at a time\n")?;
        let rate = c.decode_tok_s.map_or("–".to_owned(), |s| number(s.median));
        let over = c.over_one_job.map_or(String::new(), |o| format!(", {:.2} times what one decodes alone", o.median));
        writeln!(w, "{} jobs decoding together: {rate} tok/s in all{over}.", c.jobs)?;
    }
    if !r.notes.is_empty() {
        writeln!(w, "\n## Notes\n")?;
        for note in &r.notes {
            writeln!(w, "- {note}")?;
        }
    }
    writeln!(w, "\n{}", HOW.trim())
}

/// How the figures came about.
const HOW: &str = include_str!("how-to-read.md");

#[cfg(test)]
mod tests {
    use super::super::report::{Bandwidth, Context};
    use super::*;

    fn report() -> Report {
        let stat = |median| Stat { median, min: median * 0.9, max: median * 1.1, n: 7 };
        let mut report = Report { threads: 2, decode_ratio_llamacpp: Some(stat(1.5)), ..Report::default() };
        report.oath_overhead_decode = Some(stat(0.021));
        report.decode_tok_s.entry("ours".into()).or_default().insert(2, stat(210.0));
        report.prefill_tok_s.entry("ours".into()).or_default().insert(2, stat(500.0));
        let share = [("ours".to_owned(), 0.84)].into();
        let bytes_per_token = [("ours".to_owned(), 96_000_000)].into();
        let (bytes_per_s, limit_tok_s) = ([(2, stat(28e9))].into(), [("ours".to_owned(), 250.0)].into());
        report.bandwidth =
            Some(Bandwidth { bytes_per_s, buffer_bytes: 512 << 20, bytes_per_token, limit_tok_s, share });
        report.context.push(Context {
            positions: 512,
            prefill_tok_s: [("ours".to_owned(), 400.0)].into(),
            decode_tok_s: [("ours".to_owned(), 180.0)].into(),
        });
        report.notes.push("no llama.cpp: why".into());
        report
    }

    #[test]
    fn the_page_tells_what_the_report_holds() {
        let page = page(&report());
        for line in [
            "| decode, ours / llama.cpp | **1.50** | 1.35 | 1.65 | 7 |",
            "| the oath's price, decode | **+2.1 %** | +1.9 % | +2.3 % | 7 |",
            "| prefill, ours / llama.cpp | not measured | | | |",
            "| Sworn | 2 | 500 | 450–550 | 210 | 189–231 | 7 |",
            "| Sworn | 96.0 | 250 | 84 % |",
            "| 512 | 400 | – | 180 | – |",
            "- no llama.cpp: why",
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
        assert!(summary(&report()).contains("Sworn, 2 threads"));
    }

    #[test]
    fn a_report_survives_json() {
        let json = serde_json::to_string(&report()).unwrap();
        let again: Report = serde_json::from_str(&json).unwrap();
        assert_eq!(page(&again), page(&report()));
    }
}
