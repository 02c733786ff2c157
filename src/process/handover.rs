//! An upgrade that refuses no connection: a new process takes the listener of the old one, which then finishes its
//! jobs and ends.
//!
//! They meet at an abstract Unix socket, named after their user and the public address: nothing is left behind, and whoever
//! sees the address sees the name. Each makes sure that the other is of the same user (`SO_PEERCRED`, `SCM_RIGHTS`:
//! unix(7)).
//!
//! ```text
//!   new                 old
//!   connects
//!                       OFFERED, with the listener; or it closes: it is starting, stopping, or has a successor
//!   TAKEN, once it
//!   serves, or must
//!   be alone            it drains; its name is free
//!                       GIVEN
//!                       closes: it has ended
//! ```
//!
//! A new process that ends before `TAKEN` changes nothing.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Result, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use mio::{Interest, Registry, Token};
use rustix::net::sockopt::{socket_acceptconn, socket_peercred};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::listener::prepare;
use crate::config::Web;

const OFFERED: u8 = b'O';
const TAKEN: u8 = b'T';
const GIVEN: u8 = b'G';
/// For a word of the other process, which is a turn of its loop away.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at who has the address.
const PAUSE: Duration = Duration::from_millis(20);

/// A listener, and the process that had it before, if there was one.
type Taken = (TcpListener, Option<Predecessor>);

/// Takes the listener, or binds one. While the address is taken and nobody there gives it, this looks again, so long.
pub fn take(web: &Web, patience: Duration) -> std::result::Result<Taken, String> {
    let failed = |error: std::io::Error| format!("web.bind {}: {error}", web.bind);
    let addresses: Vec<std::net::SocketAddr> = web.bind.to_socket_addrs().map_err(failed)?.collect();
    let (begun, mut is_warned) = (Instant::now(), false);
    loop {
        for address in &addresses {
            match Predecessor::ask(*address) {
                Ok((listener, old)) => {
                    log::info!("taking over {address} from a process that runs");
                    return Ok((prepare(listener).map_err(failed)?, Some(old)));
                }
                Err(error) if error.kind() == ErrorKind::PermissionDenied && !is_warned => {
                    is_warned = true;
                    log::warn!("somebody else's process offers {address}: nothing is taken from it");
                }
                // Nobody is there, or gives nothing now.
                Err(_) => {}
            }
        }
        match TcpListener::bind(&*addresses).and_then(prepare) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < patience => {
                std::thread::sleep(PAUSE)
            }
            bound => return bound.map(|listener| (listener, None)).map_err(failed),
        }
    }
}

/// The process whose listener was taken, until it has ended.
pub struct Predecessor(UnixStream);

impl Predecessor {
    /// # Errors
    /// Nobody is there, or gives nothing now; `PermissionDenied`: it is not of our user.
    fn ask(address: std::net::SocketAddr) -> Result<(TcpListener, Predecessor)> {
        let stream = UnixStream::connect_addr(&name(address)?)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        if !is_ours(&stream) {
            return Err(ErrorKind::PermissionDenied.into());
        }
        let listener = TcpListener::from(receive(&stream)?.ok_or(ErrorKind::NotFound)?);
        let is_it = socket_acceptconn(&listener).unwrap_or(false) && listener.local_addr()? == address;
        if is_it { Ok((listener, Predecessor(stream))) } else { Err(ErrorKind::InvalidData.into()) }
    }

    /// Has it drain. After this its name is free.
    pub fn retire(&mut self) {
        // One that is gone has nothing to say.
        let _ = self.0.write_all(&[TAKEN]).and_then(|()| self.0.read_exact(&mut [0]));
    }

    /// Has it drain, and waits for its end, however long that takes.
    pub fn wait(mut self) {
        self.retire();
        let _ = self.0.set_read_timeout(None);
        while self.0.read(&mut [0]).is_ok_and(|read| read > 0) {}
    }
}

/// Both sides of it in a process that serves, or is about to.
pub struct Handover {
    listener: TcpListener,
    /// Whose listener it was, until this process serves.
    old: Option<Predecessor>,
    /// Where a successor comes, while this process serves.
    door: Option<mio::net::UnixListener>,
    /// It has the listener; it hears of this process's end.
    successor: Option<mio::net::UnixStream>,
    /// The successor serves.
    is_over: bool,
    registry: Registry,
    token: Token,
}

impl Handover {
    /// Its sockets are registered there under this one token.
    pub fn new(
        listener: TcpListener,
        old: Option<Predecessor>,
        registry: Registry,
        token: Token,
    ) -> Handover {
        let (door, successor, is_over) = Default::default();
        Handover { listener, old, door, successor, is_over, registry, token }
    }

    /// This process serves: the old one drains, and another may come.
    pub fn open(&mut self) {
        self.old.take().iter_mut().for_each(Predecessor::retire);
        self.door =
            self.bind().inspect_err(|error| log::warn!("this service cannot be handed over: {error}")).ok();
    }

    fn bind(&mut self) -> Result<mio::net::UnixListener> {
        let door = UnixListener::bind_addr(&name(self.listener.local_addr()?)?)?;
        door.set_nonblocking(true)?;
        let mut door = mio::net::UnixListener::from_std(door);
        self.registry.register(&mut door, self.token, Interest::READABLE)?;
        Ok(door)
    }

    /// Somebody has come, or the successor has said something. True, once: it serves.
    pub fn hear(&mut self) -> bool {
        if let Some(successor) = &mut self.successor {
            let mut word = [0];
            match successor.read(&mut word) {
                Ok(1) if word == [TAKEN] => return !std::mem::replace(&mut self.is_over, true),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // It has ended, or makes no sense.
                Ok(_) | Err(_) => self.successor = None,
            }
        }
        while let Some(Ok((mut stream, _))) = self.door.as_ref().map(mio::net::UnixListener::accept) {
            let is_first = self.successor.is_none() && is_ours(&stream);
            let has_it = is_first
                && self.registry.register(&mut stream, self.token, Interest::READABLE).is_ok()
                && send(&stream, &self.listener).is_ok();
            self.successor = self.successor.take().or(has_it.then_some(stream));
        }
        false
    }

    /// Nobody can come any more. A successor that serves is told that the name is free.
    pub fn close(&mut self) {
        self.door = None;
        self.successor.take_if(|successor| !self.is_over || successor.write_all(&[GIVEN]).is_err());
    }

    /// True once a successor serves in place of this process.
    pub fn is_over(&self) -> bool {
        self.is_over
    }
}

fn send(stream: impl AsFd, listener: &TcpListener) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let rights = [listener.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&rights));
    sendmsg(stream, &[IoSlice::new(&[OFFERED])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(stream: &UnixStream) -> Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0];
    let read = recvmsg(stream, &mut [IoSliceMut::new(&mut word)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    Ok(rights.filter(|_| read.bytes == 1 && word == [OFFERED]))
}

fn name(address: std::net::SocketAddr) -> Result<SocketAddr> {
    let user = rustix::process::geteuid().as_raw();
    SocketAddr::from_abstract_name(format!("cofferdam-handover-{user}-{address}"))
}

/// True if the other end runs as the user that we are.
fn is_ours(stream: impl AsFd) -> bool {
    socket_peercred(stream).is_ok_and(|peer| peer.uid == rustix::process::geteuid())
}
