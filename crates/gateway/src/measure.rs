//! What is measured of a gateway, for whoever installs a recorder.

use metrics::{describe_counter, describe_gauge, describe_histogram};

pub(crate) const REQUESTS: &str = "sworn_gateway_requests_total";
pub(crate) const UNDER_WAY: &str = "sworn_gateway_answers_under_way";
pub(crate) const SECONDS: &str = "sworn_gateway_request_seconds";
pub(crate) const FIRST_TOKEN: &str = "sworn_gateway_first_token_seconds";
pub(crate) const TOKENS: &str = "sworn_gateway_tokens_total";
pub(crate) const ASKED: &str = "sworn_gateway_node_requests_total";
pub(crate) const FAILOVERS: &str = "sworn_gateway_failovers_total";
pub(crate) const PAID: &str = "sworn_gateway_paid";
pub(crate) const REFUSED_RECEIPTS: &str = "sworn_gateway_refused_receipts_total";

pub(crate) fn describe() {
    sworn_chain::describe_measurements();
    describe_counter!(REQUESTS, "Requests by path, status and reason");
    describe_gauge!(UNDER_WAY, "Answers under way");
    describe_histogram!(SECONDS, "Time of a request until its response begins, or is whole if it is not streamed");
    describe_histogram!(FIRST_TOKEN, "Time from a request to its first token");
    describe_counter!(TOKENS, "Tokens of prompts and answers, by direction and model");
    describe_counter!(ASKED, "Requests to nodes by node and outcome");
    describe_counter!(FAILOVERS, "Answers that another node took over, before the first token or in the middle");
    describe_gauge!(
        PAID,
        "Smallest units of the payment token that receipts cost since the start, by node; for trends, not for accounts"
    );
    describe_counter!(REFUSED_RECEIPTS, "Receipts that were not what was asked for, by node and fault");
}
