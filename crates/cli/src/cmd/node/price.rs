//! `sworn node price`.

use alloy::primitives::{B256, U256};
use serde::Serialize;
use sworn_node::{Price, PriceList};

use super::state;
use crate::args::SetPrice;
use crate::fault::{Doing, Result};
use crate::link::Link;
use crate::models;
use crate::settings::Settings;

#[derive(Serialize)]
struct Listed {
    file: String,
    model: B256,
    /// None: as posted.
    price: Option<Price>,
}

/// The model that is meant, and its price.
pub(super) fn read(settings: &Settings, link: &Link, command: &SetPrice) -> Result<(B256, Price)> {
    let parse = |amount: &Option<String>| link.currency.parse(amount.as_deref().unwrap_or_default());
    let price = Price {
        per_input_token: parse(&command.input)?,
        per_output_token: parse(&command.output)?,
        max_tokens: command.longest,
    };
    Ok((models::load(settings, &command.model)?.id().into(), price))
}

/// Edits the price list of the account's node.
pub(super) async fn list(settings: &Settings, command: SetPrice) -> Result<()> {
    let link = Link::open(settings).await?;
    let data = match &command.state {
        Some(data) => data.clone(),
        None => state(settings, settings.account().await?),
    };
    let file = PriceList::file(&data);
    let mut list = PriceList::read(&file).doing(|| {
        format!("{} is no price list: mend it, or delete it, which brings back what is posted", file.display())
    })?;
    let (model, price) = if command.as_posted {
        (models::load(settings, &command.model)?.id().into(), None)
    } else {
        let (model, price) = read(settings, &link, &command)?;
        (model, Some(price))
    };
    match price {
        Some(price) => list.0.insert(model, price),
        None => list.0.remove(&model),
    };
    list.write(&file).doing(|| format!("cannot write {}: check its directory's permissions", file.display()))?;
    let listed = Listed { file: file.display().to_string(), model, price };
    let money = |amount: u128| link.currency.show(U256::from(amount));
    settings.out.result(&listed, |l| match l.price {
        None => format!("{}  as posted", l.model),
        Some(p) if p.max_tokens == 0 => format!("{}  not offered", l.model),
        Some(p) => format!(
            "{}  {} per input token, {} per output token, up to {} tokens",
            l.model,
            money(p.per_input_token),
            money(p.per_output_token),
            p.max_tokens
        ),
    })
}
