//! From what a person types to tokens.

use std::io::Read;

use sworn_model::{Message, Model};

use crate::fault::{Doing, Fault, Result};

/// The prompt as given, or stdin for `-`.
pub(crate) fn read(argument: &str) -> Result<String> {
    let text = if argument == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).doing(|| "cannot read the prompt from stdin".into())?;
        text
    } else {
        argument.to_owned()
    };
    if text.trim().is_empty() { Err(Fault::usage("the prompt is empty")) } else { Ok(text) }
}

/// A prompt's tokens: a user's turn by the model's chat template, or the bare text.
pub(crate) fn encode(model: &Model, prompt: &str, raw: bool) -> Result<Vec<u32>> {
    let tokens = if raw || !model.chat().is_present() {
        model.encode_text(prompt)?
    } else {
        model.encode_chat(&[Message::new("user", prompt)])?
    };
    if tokens.is_empty() { Err(Fault::usage("the prompt has no tokens")) } else { Ok(tokens) }
}

/// That strings which end an answer are strings.
pub(crate) fn check_stops(stops: &[String]) -> Result<()> {
    if stops.iter().any(String::is_empty) {
        return Err(Fault::usage("--stop is empty: give the text that ends an answer, or leave the flag out"));
    }
    Ok(())
}
