//! What a channel owes: one total that only rises, and what is promised of the rest.

use std::collections::BTreeMap;

/// A channel's account with the node. Whatever is admitted can be paid: `best`, the largest ceiling that the channel's signer has
/// signed, always covers the total and all that is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Book {
    /// Receipts there are.
    pub(crate) sequence: u64,
    /// What the channel owes after the last.
    pub(crate) cumulative: u128,
    /// The most that requests under way can cost.
    flights: BTreeMap<u64, u128>,
}

/// Why a request cannot be paid: the ceiling or the channel is less than this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needed(pub(crate) u128);

impl Book {
    /// As it was left.
    pub(crate) fn new(sequence: u64, cumulative: u128) -> Self {
        Book { sequence, cumulative, flights: BTreeMap::new() }
    }

    /// Requests under way and what each can cost.
    pub(crate) fn flights(&self) -> impl Iterator<Item = (u64, u128)> {
        self.flights.iter().map(|(request, maximum)| (*request, *maximum))
    }

    /// What a ceiling must be at least for one more request; saturates, which no deposit covers.
    pub(crate) fn needed(&self, maximum: u128) -> u128 {
        self.flights.values().fold(self.cumulative, |sum, m| sum.saturating_add(*m)).saturating_add(maximum)
    }

    /// Begins a request that can cost `maximum`, if a ceiling and the channel's deposit cover it.
    pub(crate) fn admit(&mut self, request: u64, maximum: u128, ceiling: u128, deposit: u128) -> Result<(), Needed> {
        let needed = self.needed(maximum);
        if needed > ceiling.min(deposit) || needed == u128::MAX {
            return Err(Needed(needed));
        }
        self.flights.insert(request, maximum);
        Ok(())
    }

    /// Takes up a request that was admitted before a restart.
    pub(crate) fn resume(&mut self, request: u64, maximum: u128) {
        self.flights.insert(request, maximum);
    }

    /// The next receipt's number and total, if the answer to `request` costs `price`; `None` if it was not admitted at that price.
    pub(crate) fn next(&self, request: u64, price: u128) -> Option<(u64, u128)> {
        let admitted = self.flights.get(&request).is_some_and(|maximum| price <= *maximum);
        admitted.then_some((self.sequence.checked_add(1)?, self.cumulative.checked_add(price)?))
    }

    /// Takes over a receipt that is in the journal.
    pub(crate) fn settle(&mut self, request: u64, sequence: u64, cumulative: u128) {
        self.flights.remove(&request);
        (self.sequence, self.cumulative) = (sequence, cumulative);
    }

    /// Ends a request that nothing is owed for.
    pub(crate) fn release(&mut self, request: u64) {
        self.flights.remove(&request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator: the order of events is what matters, not its distribution.
    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    #[test]
    fn what_is_admitted_is_covered_in_any_order() {
        for seed in 0..200 {
            let (mut state, mut book, mut best) = (seed, Book::default(), 0u128);
            let deposit = 1_000;
            for request in 0..40 {
                let (maximum, ceiling) = (u128::from(next(&mut state) % 90), u128::from(next(&mut state) % 1_200));
                match book.admit(request, maximum, ceiling, deposit) {
                    Ok(()) => best = best.max(ceiling),
                    Err(Needed(n)) => assert!(n > ceiling || n > deposit),
                }
                let under_way: Vec<_> = book.flights().collect();
                for (request, maximum) in under_way {
                    match next(&mut state) % 4 {
                        0 => book.release(request),
                        1 => {
                            let price = u128::from(next(&mut state)) % (maximum + 1);
                            let (sequence, cumulative) = book.next(request, price).unwrap();
                            assert_eq!((sequence, cumulative), (book.sequence + 1, book.cumulative + price));
                            book.settle(request, sequence, cumulative);
                        }
                        _ => {}
                    }
                }
                assert!(book.needed(0) <= best && best <= 1_200 && book.needed(0) <= deposit);
            }
        }
    }

    #[test]
    fn nothing_overflows_and_nothing_is_settled_twice() {
        let mut book = Book::new(7, 10);
        assert_eq!(book.admit(1, u128::MAX, u128::MAX, u128::MAX), Err(Needed(u128::MAX)));
        assert_eq!(book.admit(1, 5, 14, 100), Err(Needed(15)));
        assert_eq!(book.admit(1, 5, 100, 14), Err(Needed(15)));
        book.admit(1, 5, 15, 15).unwrap();
        assert_eq!((book.next(1, 6), book.next(2, 0)), (None, None));
        let (sequence, cumulative) = book.next(1, 4).unwrap();
        book.settle(1, sequence, cumulative);
        assert_eq!(book, Book::new(8, 14));
        assert_eq!(book.next(1, 4), None);
    }
}
