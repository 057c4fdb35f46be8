//! Connections.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use crate::counted;

/// What a listener admits.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Open connections, waiting ones included; who comes when all places are taken waits in the system's queue.
    pub connections: usize,
    /// Of them from one address; more are closed at once.
    pub of_one_address: usize,
    /// Longest life of a connection, whatever its peer does.
    pub life: Duration,
    /// The same, from [`Peer::extend`] on.
    pub extended: Duration,
}

/// Connections of each address.
type Held = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A listener within bounds.
#[derive(Debug)]
pub struct Bounded {
    listener: TcpListener,
    bounds: Bounds,
    places: Arc<Semaphore>,
    held: Held,
}

impl Bounded {
    /// Over a listener.
    pub fn new(listener: TcpListener, bounds: Bounds) -> Self {
        let places = Arc::new(Semaphore::new(bounds.connections.clamp(1, Semaphore::MAX_PERMITS)));
        Bounded { listener, bounds, places, held: Held::default() }
    }
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.ok();
        let (stream, address, share) = loop {
            let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
            if let Some(share) = Share::take(&self.held, address.ip(), self.bounds.of_one_address) {
                break (stream, address, share);
            }
        };
        // Tokens are small and must not wait for each other: Nagle's algorithm holds each back until the client's delayed acknowledgement,
        // some 40 milliseconds.
        let _ = stream.set_nodelay(true);
        let end = Box::pin(tokio::time::sleep(self.bounds.life));
        let peer = Peer { address, extended: Arc::default() };
        (Connection { stream, end, longer: self.bounds.extended, peer, _place: place, _share: share }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One of an address's connections, until dropped.
#[derive(Debug)]
struct Share(Option<(Held, IpAddr)>);

impl Share {
    fn take(held: &Held, address: IpAddr, most: usize) -> Option<Self> {
        let Some(who) = counted(address) else { return Some(Share(None)) };
        let mut all = held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(who).or_default();
        if *count >= most.max(1) {
            return None;
        }
        *count += 1;
        Some(Share(Some((held.clone(), who))))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some((held, who)) = &self.0 else { return };
        let mut all = held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(who) {
            *count -= 1;
            if *count == 0 {
                all.remove(who);
            }
        }
    }
}

/// Who is at the other end: axum's `ConnectInfo` of a [`Bounded`] listener.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    extended: Arc<AtomicBool>,
}

impl Peer {
    /// Whose request this is; none where nobody listened (a router in a test).
    pub fn of(request: &Request) -> Option<&Peer> {
        request.extensions().get::<ConnectInfo<Peer>>().map(|p| &p.0)
    }

    /// From now on the connection may last as long as [`Bounds::extended`] says.
    pub fn extend(&self) {
        self.extended.store(true, Ordering::Relaxed);
    }
}

impl Connected<IncomingStream<'_, Bounded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        stream.io().peer.clone()
    }
}

/// A connection that ends after a while, whatever its peer does.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    longer: Duration,
    peer: Peer,
    _place: Option<OwnedSemaphorePermit>,
    _share: Share,
}

impl Connection {
    fn expired(&mut self, cx: &mut Context<'_>) -> bool {
        if self.peer.extended.swap(false, Ordering::Relaxed) {
            self.end.as_mut().reset(tokio::time::Instant::now() + self.longer);
        }
        self.end.as_mut().poll(cx).is_ready()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.expired(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.expired(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_come_back() {
        let held = Held::default();
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let first = Share::take(&held, one, 2).unwrap();
        let _second = Share::take(&held, one, 2).unwrap();
        assert!(Share::take(&held, one, 2).is_none());
        assert!(Share::take(&held, other, 2).is_some());
        drop(first);
        let _third = Share::take(&held, one, 2).unwrap();
        assert!(Share::take(&held, one, 2).is_none());
        assert_eq!(held.lock().unwrap().len(), 1);
        let own: Vec<_> = (0..100).map(|_| Share::take(&held, "::1".parse().unwrap(), 2).unwrap()).collect();
        drop(own);
        assert_eq!(held.lock().unwrap().len(), 1);
    }
}
