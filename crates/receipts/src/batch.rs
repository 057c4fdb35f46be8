//! The tree over a batch of receipts.

use alloy::primitives::{B256, U256, keccak256};
use alloy::sol_types::SolValue;
use sworn_bindings::{Part, Place};
use sworn_commit::Tree;

use crate::{Domain, Receipt};

/// The tree over the digests of receipts, in order of their sequence numbers. A receipt is shown with [`Tree::prove`] of its place.
pub fn receipts_tree<'a>(domain: &Domain, receipts: impl IntoIterator<Item = &'a Receipt>) -> Tree {
    let domain = domain.eip712();
    let digest = |r: &Receipt| alloy::sol_types::SolStruct::eip712_signing_hash(r, &domain).0;
    Tree::new(receipts.into_iter().map(digest).collect())
}

/// Its root.
pub fn receipts_root<'a>(domain: &Domain, receipts: impl IntoIterator<Item = &'a Receipt>) -> B256 {
    receipts_tree(domain, receipts).root().into()
}

/// Shows a channel's part of a batch; `None` if the batch has none. `parts` are all of the batch's, in order.
pub fn place(batch: U256, parts: &[Part], channel: B256) -> Option<Place> {
    let index = parts.iter().position(|p| p.channelId == channel)?;
    let tree = Tree::new(parts.iter().map(|p| keccak256(p.abi_encode()).0).collect());
    let proof = tree.prove(index as u64, 1).into_iter().map(B256::from).collect();
    Some(Place { batchId: batch, part: parts[index].clone(), index: u8::try_from(index).ok()?, proof })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::Address;
    use sworn_commit::tree::{depth, range_root};

    #[test]
    fn every_receipt_can_be_shown() {
        let domain = Domain { chain_id: 5, channels: Address::repeat_byte(3) };
        for count in [1u64, 2, 3, 7, 100] {
            let receipts: Vec<_> = (1..=count).map(|sequence| Receipt { sequence, ..Receipt::default() }).collect();
            let tree = receipts_tree(&domain, &receipts);
            assert_eq!(receipts_root(&domain, &receipts), B256::from(tree.root()));
            for (i, receipt) in receipts.iter().enumerate() {
                let proof = tree.prove(i as u64, 1);
                let leaf = [domain.digest(receipt).0];
                assert_eq!(range_root(&leaf, i as u64, depth(count), &proof), Some((tree.root(), proof.len())));
            }
        }
    }
}
