//! A proxy between a deployment and its redis-server that can do to a connection what a network does.
//!
//! It guards the suite against a fault that comes at the wrong moment: a connection is cut between a script's end and
//! its answer, for exactly the calls that a test names, and a test sees how often that was.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Which calls are cut: of those whose request and whose answer both hold these words each so manieth, so often.
#[derive(Clone)]
pub struct Cut {
    pub request: &'static str,
    pub answer: &'static str,
    pub each: usize,
    pub times: usize,
}

#[derive(Default)]
struct Weather {
    /// Nothing goes through, and nothing is closed.
    is_hole: bool,
    /// New connections are closed at once.
    refuses: bool,
    /// Requests that hold these words are held for so long.
    delay: (&'static str, Duration),
    cut: Option<Cut>,
    /// Calls that it meant so far.
    meant: usize,
    cuts: usize,
    connections: Vec<(TcpStream, UnixStream)>,
    /// The server's socket.
    server: PathBuf,
}

/// See the module. It listens on a loopback port and speaks to a server's Unix socket.
pub struct Proxy {
    pub address: SocketAddr,
    weather: Arc<Mutex<Weather>>,
    closed: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

fn lock(weather: &Mutex<Weather>) -> MutexGuard<'_, Weather> {
    weather.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    pub fn to(socket: &Path) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let weather = Weather { server: socket.to_owned(), ..Weather::default() };
        let weather = Arc::new(Mutex::new(weather));
        let closed = Arc::new(AtomicBool::new(false));
        let (sky, ends) = (weather.clone(), closed.clone());
        let thread = std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let server = lock(&sky).server.clone();
                if !lock(&sky).refuses {
                    connect(client, &server, &sky);
                }
            }
        });
        Proxy { address, weather, closed, listener: Some(thread) }
    }

    /// As the config names it.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// From now on connections are kept and nothing comes through, or all of it again.
    pub fn black_hole(&self, is_hole: bool) {
        lock(&self.weather).is_hole = is_hole;
        if !is_hole {
            // What was swallowed is not made up for.
            self.cut_all();
        }
    }

    /// New connections are closed at once, and all others now; or not any more.
    pub fn refuse(&self, refuses: bool) {
        lock(&self.weather).refuses = refuses;
        self.cut_all();
    }

    /// From now on it speaks to another server: all connections are closed.
    pub fn turn_to(&self, socket: &Path) {
        lock(&self.weather).server = socket.to_owned();
        self.cut_all();
    }

    /// Each request that holds these words is held for so long.
    pub fn delay(&self, words: &'static str, delay: Duration) {
        lock(&self.weather).delay = (words, delay);
    }

    /// Cuts connections after such a request has been served and before its answer.
    pub fn cut(&self, cut: Cut) {
        let mut sky = lock(&self.weather);
        (sky.cut, sky.meant) = (Some(cut), 0);
    }

    /// How many were cut so.
    pub fn cuts(&self) -> usize {
        lock(&self.weather).cuts
    }

    /// Closes all connections.
    pub fn cut_all(&self) {
        for (client, server) in std::mem::take(&mut lock(&self.weather).connections) {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.listener.take() {
            let _ = thread.join();
        }
        self.cut_all();
    }
}

/// What was asked since the last answer.
type Asked = Arc<Mutex<Vec<u8>>>;

fn connect(client: TcpStream, socket: &Path, sky: &Arc<Mutex<Weather>>) {
    let _ = client.set_nodelay(true);
    let Ok(server) = UnixStream::connect(socket) else { return };
    let (Ok(from_client), Ok(to_client)) = (client.try_clone(), client.try_clone()) else { return };
    let (Ok(from_server), Ok(to_server)) = (server.try_clone(), server.try_clone()) else { return };
    lock(sky).connections.push((client, server));
    let asked = Asked::default();
    let (same, weather) = (asked.clone(), sky.clone());
    std::thread::spawn(move || requests(from_client, to_server, &same, &weather));
    let weather = sky.clone();
    std::thread::spawn(move || answers(from_server, to_client, &asked, &weather));
}

fn requests(mut client: TcpStream, mut server: UnixStream, asked: &Asked, sky: &Mutex<Weather>) {
    let mut part = vec![0; 1 << 16];
    while let Ok(read @ 1..) = client.read(&mut part) {
        let (is_hole, (words, delay)) = {
            let sky = lock(sky);
            (sky.is_hole, sky.delay)
        };
        if is_hole {
            continue;
        }
        if holds(&part[..read], words) {
            std::thread::sleep(delay);
        }
        asked.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&part[..read]);
        if server.write_all(&part[..read]).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
    let _ = client.shutdown(Shutdown::Both);
}

fn answers(mut server: UnixStream, mut client: TcpStream, asked: &Asked, sky: &Mutex<Weather>) {
    let mut part = vec![0; 1 << 20];
    while let Ok(read @ 1..) = server.read(&mut part) {
        let asked = std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner));
        let mut sky = lock(sky);
        if sky.is_hole {
            continue;
        }
        if is_cut(&mut sky, &asked, &part[..read]) {
            sky.cuts += 1;
            break;
        }
        drop(sky);
        if client.write_all(&part[..read]).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

fn holds(bytes: &[u8], words: &str) -> bool {
    words.is_empty() || bytes.windows(words.len()).any(|window| window == words.as_bytes())
}

/// An error is no end of a script.
fn is_cut(sky: &mut Weather, asked: &[u8], answer: &[u8]) -> bool {
    let Some(cut) = sky.cut.as_mut().filter(|cut| cut.times > 0) else { return false };
    if answer.starts_with(b"-") || !holds(asked, cut.request) || !holds(answer, cut.answer) {
        return false;
    }
    sky.meant += 1;
    let is_its_turn = sky.meant.is_multiple_of(cut.each);
    cut.times -= usize::from(is_its_turn);
    is_its_turn
}
