//! The node's HTTP side, believed only as far as it hashes to what is on chain.

use std::time::Duration;

use sworn_commit::{Hash, HeadOpening, TraceDims, TraceTree, tensor};

/// Longest wait for an answer: a node recomputes a layer before it serves its operators.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// Asks nodes for what they committed to.
#[derive(Clone, Debug)]
pub struct Served {
    client: reqwest::Client,
}

impl Default for Served {
    fn default() -> Self {
        let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
        Served { client: builder.build().unwrap_or_default() }
    }
}

impl Served {
    /// The claimed trace of a job.
    ///
    /// # Errors
    /// Why it is not to be had, or not the committed one.
    pub(crate) async fn trace(
        &self,
        endpoint: &str,
        job: u64,
        dims: &TraceDims,
        layers_root: &Hash,
        patience: Duration,
    ) -> Result<TraceTree, String> {
        let leaves: u64 = (0..dims.layer_count()).map(|l| u64::from(dims.rows(l))).sum();
        let bytes = self.get(endpoint, &format!("v1/jobs/{job}/trace"), leaves * 32, patience).await?;
        let tree = TraceTree::decode(&bytes, dims).ok_or("the served trace has another shape")?;
        if tree.layers_root() != *layers_root {
            return Err("the served trace is not the committed one".into());
        }
        Ok(tree)
    }

    /// A claimed operator tensor. The node serves all tensors of the row one after another; `lens` are their lengths.
    ///
    /// # Errors
    /// Why it is not to be had, or not the posted one.
    pub(crate) async fn tensor(
        &self,
        endpoint: &str,
        job: u64,
        (layer, row, op): (u16, u32, u16),
        lens: &[usize],
        root: &Hash,
        patience: Duration,
    ) -> Result<Vec<u8>, String> {
        let total: usize = lens.iter().sum();
        let bytes = self.get(endpoint, &format!("v1/jobs/{job}/ops/{layer}/{row}"), total as u64, patience).await?;
        let start: usize = lens.iter().take(op as usize).sum();
        let len = lens.get(op as usize).copied().unwrap_or(0);
        let tensor = bytes.get(start..start + len).filter(|_| bytes.len() == total);
        let tensor = tensor.ok_or("the served tensors have other sizes")?;
        if tensor::tensor_root(tensor) != *root {
            return Err("the served tensor is not the posted one".into());
        }
        Ok(tensor.to_vec())
    }

    /// The log-probabilities of a job's answer, by a model whose `TOP` has `n` tokens; they are what the layers root commits to.
    ///
    /// # Errors
    /// Why they are not to be had, or not the committed ones.
    pub async fn log_probs(
        &self,
        endpoint: &str,
        job: u64,
        dims: &TraceDims,
        n: usize,
        output: &[u32],
        layers_root: &Hash,
    ) -> Result<HeadOpening, String> {
        let len = HeadOpening::encoded_len(dims, n);
        let bytes = self.get(endpoint, &format!("v1/jobs/{job}/logprobs"), len, TIMEOUT).await?;
        HeadOpening::verify(&bytes, dims, n, output, layers_root).map_err(|e| e.to_string())
    }

    /// Exactly as many bytes as there must be: a hostile node cannot make the watcher hold more.
    async fn get(&self, endpoint: &str, path: &str, len: u64, patience: Duration) -> Result<Vec<u8>, String> {
        let base =
            reqwest::Url::parse(endpoint).map_err(|e| format!("the node's endpoint {endpoint:?} is no URL: {e}"))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(format!("the node's endpoint {endpoint:?} is not http"));
        }
        let url = format!("{}/{path}", endpoint.trim_end_matches('/'));
        let mut response = self
            .client
            .get(url)
            .timeout(patience.min(TIMEOUT))
            .send()
            .await
            .map_err(|e| e.without_url().to_string())?;
        if !response.status().is_success() {
            return Err(format!("the node says {}", response.status()));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| e.without_url().to_string())? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > len {
                return Err(format!("the node serves more than the {len} bytes that there are"));
            }
        }
        if bytes.len() as u64 == len { Ok(bytes) } else { Err(format!("{} bytes instead of {len}", bytes.len())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sworn_commit::TraceBuilder;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers every request with `response`, then closes.
    async fn server(response: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 2048];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(&response).await;
            }
        });
        url
    }

    fn ok(body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    }

    #[tokio::test]
    async fn only_what_is_committed_to_is_believed() {
        let dims = TraceDims { layers: 1, n_in: 3, n_out: 2 };
        let mut builder = TraceBuilder::new(1);
        for layer in 0..3 {
            for row in 0..dims.rows(layer) {
                builder.push(layer, sworn_commit::keccak(&[&layer.to_be_bytes(), &row.to_be_bytes()]));
            }
        }
        let tree = builder.finish();
        let (bytes, root) = (tree.encode(), tree.layers_root());
        let served = Served::default();
        let got = served.trace(&server(ok(&bytes)).await, 1, &dims, &root, TIMEOUT).await;
        assert_eq!(got.unwrap(), tree);

        let mut other = bytes.clone();
        other[40] ^= 1;
        let redirect = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_vec();
        let endless = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &vec![7; 1 << 20]].concat();
        for (response, why) in [
            (ok(&other), "not the committed one"),
            (ok(&bytes[1..]), "bytes instead of"),
            (ok(&[&bytes[..], &[0]].concat()), "more than"),
            (ok(b""), "bytes instead of"),
            (endless, "more than"),
            (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(), "404"),
            (redirect, "302"),
            (b"garbage\r\n\r\n".to_vec(), ""),
        ] {
            let error = served.trace(&server(response).await, 1, &dims, &root, TIMEOUT).await.unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        for endpoint in ["", "no url", "file:///etc/passwd", "ftp://127.0.0.1"] {
            assert!(served.trace(endpoint, 1, &dims, &root, TIMEOUT).await.is_err());
        }

        let ops = [vec![1u8; 10], vec![2; 2000]];
        let (lens, root) = ([10, 2000], tensor::tensor_root(&ops[1]));
        let url = server(ok(&ops.concat())).await;
        assert_eq!(served.tensor(&url, 1, (1, 0, 1), &lens, &root, TIMEOUT).await.unwrap(), ops[1]);
        let error = served.tensor(&url, 1, (1, 0, 0), &lens, &root, TIMEOUT).await.unwrap_err();
        assert!(error.contains("not the posted one"), "{error}");
        assert!(served.tensor(&url, 1, (1, 0, 7), &lens, &root, TIMEOUT).await.is_err());
    }
}
