//! What is measured, and how often.

use sworn_model::SyntheticSpec;

use crate::args::Bench;

/// Sizes and repetitions of a run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Threads of the comparisons.
    pub(super) threads: usize,
    /// Repetitions of the comparisons with peers on all threads.
    pub(super) runs: usize,
    /// Repetitions of them on one thread.
    pub(super) runs_one_thread: usize,
    /// Rounds that candle takes part in: slower by an order of magnitude, it would take most of the run.
    pub(super) runs_candle: usize,
    /// Pairs with and without the oath: many, since what they differ by is less than what the machine varies by.
    pub(super) pairs: usize,
    /// Answers that are audited.
    pub(super) audits: usize,
    /// Prompt and answer of the comparisons, as llama-bench's pp128 and tg64.
    pub(super) prompt: u32,
    pub(super) decode: u32,
    /// Prompt and answer of the audits.
    pub(super) audit_prompt: u32,
    pub(super) audit_output: u32,
    /// Contexts to measure at the end of.
    pub(super) contexts: &'static [u32],
    /// Windows of the perplexity's text, and their length.
    pub(super) windows: u32,
    pub(super) window: u32,
    /// Jobs at a time, the tokens of each prompt and the tokens that each decodes.
    pub(super) jobs: u32,
    pub(super) job_prompt: u32,
    pub(super) job_decode: u32,
    /// Shapes of other models.
    pub(super) shapes: &'static [Shape],
    /// Passes through the bandwidth's buffer, and its largest size.
    pub(super) passes: usize,
    pub(super) buffer: usize,
}

/// The matrices of a model that is not here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    layers: u16,
    /// Layers that are run.
    run: u16,
    hidden: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    ffn: u32,
    vocab: u32,
}

/// Those of SmolLM2-135M, Llama 3.2 1B and Llama 3.1 8B.
const SHAPES: [Shape; 3] = [
    Shape {
        name: "135M",
        layers: 30,
        run: 30,
        hidden: 576,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        ffn: 1536,
        vocab: 49_152,
    },
    Shape {
        name: "1B",
        layers: 16,
        run: 16,
        hidden: 2048,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        ffn: 8192,
        vocab: 128_256,
    },
    Shape {
        name: "8B",
        layers: 32,
        run: 4,
        hidden: 4096,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        ffn: 14_336,
        vocab: 128_256,
    },
];

/// Tokens of the synthetic models: as many as a synthetic tokenizer can name, in round figures.
const VOCAB_RUN: u32 = 16_384;

impl Shape {
    pub(super) fn layers(&self) -> u16 {
        self.layers
    }

    pub(super) fn layers_run(&self) -> u16 {
        self.run
    }

    /// Weights that a token is multiplied with, in the whole model.
    pub(super) fn weights(&self) -> u64 {
        self.weights_of(self.layers, self.vocab)
    }

    /// The same in the part that is run.
    pub(super) fn weights_run(&self) -> u64 {
        self.weights_of(self.run, VOCAB_RUN)
    }

    fn weights_of(&self, layers: u16, vocab: u32) -> u64 {
        let [hidden, heads, kv, width, ffn] =
            [self.hidden, self.heads, self.kv_heads, self.head_dim, self.ffn].map(u64::from);
        let block = hidden * width * (2 * heads + 2 * kv) + 3 * hidden * ffn;
        u64::from(layers) * block + u64::from(vocab) * hidden
    }

    /// The part that is run.
    pub(super) fn spec(&self, context: u32) -> SyntheticSpec {
        SyntheticSpec {
            layers: self.run,
            hidden: self.hidden,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            ffn: self.ffn,
            vocab: VOCAB_RUN,
            context,
            seed: 1,
            tied: true,
        }
    }
}

impl Plan {
    pub(super) fn new(command: &Bench, processors: usize) -> Self {
        let threads = command.threads.map_or(processors, |n| n.get().into());
        let plan = Plan {
            threads,
            runs: 7,
            runs_one_thread: 3,
            runs_candle: 3,
            pairs: 49,
            audits: 5,
            prompt: 128,
            decode: 64,
            audit_prompt: 128,
            audit_output: 256,
            contexts: &[128, 512, 2048, 8192],
            windows: 9,
            window: 512,
            jobs: 8,
            job_prompt: 32,
            job_decode: 32,
            shapes: &SHAPES,
            passes: 4,
            buffer: 512 << 20,
        };
        let plan = match command.quick {
            false => plan,
            true => Plan {
                runs: 3,
                runs_one_thread: 1,
                runs_candle: 1,
                pairs: 9,
                audits: 3,
                contexts: &[128, 512],
                windows: 2,
                shapes: &[],
                passes: 2,
                buffer: 128 << 20,
                ..plan
            },
        };
        match command.runs.map(|n| usize::from(n.get())) {
            None => plan,
            Some(n) => Plan { runs: n, runs_one_thread: n.min(plan.runs_one_thread), pairs: 7 * n, audits: n, ..plan },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_weigh_what_their_models_do() {
        let weights = SHAPES.map(|s| s.weights());
        // Published parameter counts, less norms; 8B has an embedding beside its head, which no token is multiplied with.
        assert_eq!(weights, [134_479_872, 1_235_746_816, 7_504_658_432]);
        for shape in SHAPES {
            assert!(shape.run <= shape.layers && shape.weights_run() < shape.weights());
            assert!(shape.spec(512).config().check().is_ok());
        }
    }
}
