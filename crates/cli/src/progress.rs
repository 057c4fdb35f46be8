//! Progress bars, on stderr and only for a person.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sworn_model::{Progress, Stage};

use crate::output;

/// A bar that follows a model operation through its stages.
pub(crate) struct ModelProgress {
    bar: ProgressBar,
    stage: Option<Stage>,
}

impl ModelProgress {
    pub(crate) fn new() -> Self {
        Self { bar: hidden_or(ProgressBar::no_length()), stage: None }
    }

    /// Shows how far the operation is.
    pub(crate) fn show(&mut self, progress: Progress) {
        if self.stage != Some(progress.stage) {
            self.stage = Some(progress.stage);
            self.bar.set_message(progress.stage.label());
            self.bar.set_style(style(progress.stage.is_bytes()));
            self.bar.reset();
        }
        if progress.total > 0 {
            self.bar.set_length(progress.total);
        }
        self.bar.set_position(progress.done);
    }
}

impl Drop for ModelProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A bar over `total` units.
pub(crate) fn bar(label: &'static str, total: u64) -> ProgressBar {
    let bar = hidden_or(ProgressBar::new(total));
    bar.set_style(style(false));
    bar.set_message(label);
    bar
}

/// A sign of life for work of unknown length.
pub(crate) fn spinner(message: impl Into<String>) -> ProgressBar {
    let bar = hidden_or(ProgressBar::new_spinner());
    bar.set_message(message.into());
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    bar
}

fn hidden_or(bar: ProgressBar) -> ProgressBar {
    if !output::interactive() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

fn style(bytes: bool) -> ProgressStyle {
    let template = if bytes {
        "{msg:>12} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"
    } else {
        "{msg:>12} [{bar:32}] {pos}/{len} {eta}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}
