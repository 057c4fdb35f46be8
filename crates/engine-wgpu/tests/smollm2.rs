//! The default model on the device: prefill and decoding give the `cpu` backend's exports and tokens. Needs the model
//! (pulled once) and a Vulkan adapter; `script/mesa` gets a software one.

use std::sync::Arc;
use std::time::Instant;

use sworn_engine::{Backend, Cpu, ExportSink};
use sworn_engine_wgpu::{Products, Selection, WgpuBackend};
use sworn_model::{Message, Model, pull, store::sworn_home};

/// What a run exported, in an order that does not depend on the backend.
#[derive(Default)]
struct Exports(std::collections::BTreeMap<(u16, u32), Vec<u8>>);

impl ExportSink for Exports {
    fn export(&mut self, layer: u16, position: u32, tensors: &[&[u8]]) -> sworn_engine::Result<()> {
        self.0.insert((layer, position), tensors.concat());
        Ok(())
    }
}

/// Prefill, then greedy decoding of `new` tokens; and how long both took.
fn answer(backend: &dyn Backend, prompt: &[u32], new: usize) -> (Vec<u32>, Exports, [f64; 2]) {
    let mut session = backend.session(256).unwrap();
    let mut exports = Exports::default();
    let start = Instant::now();
    let mut tokens = session.extend(prompt, prompt.len() as u32 - 1, &mut exports).unwrap();
    let prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    while tokens.len() < new {
        let last = tokens[tokens.len() - 1];
        tokens.extend(session.extend(&[last], 0, &mut exports).unwrap());
    }
    (tokens, exports, [prefill, start.elapsed().as_secs_f64()])
}

#[test]
fn smollm2_gives_the_bytes_of_the_cpu_backend() {
    let model: Model = pull("smollm2-135m", sworn_home().unwrap(), &mut |_| {}).expect("the default model");
    let model = Arc::new(model);
    let question = Message { role: "user".into(), content: "Explain what a smart contract is.".into() };
    let prompt = model.encode_chat(&[question]).unwrap();
    let new = 6;

    let (want, all, _) = answer(&Cpu::new(model.clone()).unwrap(), &prompt, new);
    let bytes: usize = all.0.values().map(Vec::len).sum();
    for products in [Products::Words, Products::Dots] {
        let start = Instant::now();
        let gpu = WgpuBackend::with_products(model.clone(), &Selection::Best, Some(products));
        let gpu = gpu.unwrap_or_else(|e| panic!("{e}"));
        let load = start.elapsed().as_secs_f64();
        // The first run compiles the kernels; the second one is what a node sees.
        let (first, same, cold) = answer(&gpu, &prompt, new);
        let (second, _, warm) = answer(&gpu, &prompt, new);
        assert_eq!(first, want);
        assert_eq!(second, want);
        assert_eq!(same.0.len(), all.0.len());
        for (at, bytes) in &all.0 {
            assert!(same.0.get(at) == Some(bytes), "{products:?}, layer {}, position {}: exports differ", at.0, at.1);
        }
        eprintln!("{}, {products:?}: upload {load:.1} s, kernels {:.1} s", gpu.device(), cold[0] - warm[0]);
        eprintln!(
            "prefill {:.1} tok/s, decode {:.1} tok/s; {bytes} exported bytes and {} tokens equal",
            prompt.len() as f64 / warm[0],
            (new - 1) as f64 / warm[1],
            want.len()
        );
    }
}
