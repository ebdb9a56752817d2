//! Connections that come to nothing, many at once. They come from other loopback addresses than the host that means it, which only Linux
//! has without being told.

use std::net::{Ipv4Addr, SocketAddr};

use taskmarket::Status;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

use crate::agent::Script;
use crate::support::{Relay, Requester, Times, within};

/// Connections that come to nothing.
const FLOOD: usize = 500;
/// The addresses that they come from.
const SOURCES: usize = 10;

async fn dial(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    within("a connection", socket.connect(to)).await.unwrap()
}

#[tokio::test]
async fn connections_that_come_to_nothing_keep_nobody_out() {
    // Both ends of each connection are in this process.
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let relay = Relay::start(Times::default()).await;
    let url = relay.url();
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, url.port().unwrap()));
    let upgrade = format!(
        "GET {} HTTP/1.1\r\nhost: {to}\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: {}\r\n\r\n",
        url.path(),
        link::SUBPROTOCOL
    );
    let mut flood = Vec::new();
    for number in 0..FLOOD {
        let source = u8::try_from(number % SOURCES).unwrap();
        let mut stream = dial(Ipv4Addr::new(127, 0, 0, 2 + source), to).await;
        // Nothing, half a request, or a request for a session that is never registered.
        let says = [&upgrade[..0], &upgrade[..40], &upgrade][number / SOURCES % 3];
        stream.write_all(says.as_bytes()).await.unwrap();
        flood.push(stream);
    }

    let agent = Script::new().connect(&url).await;
    let requester = Requester::new();
    let task_id = relay.publish(&requester, &requester.task()).await;
    let assignment = agent.is_offered(task_id).await;
    relay.reaches(task_id, Status::Accepted, 1).await;
    let result = relay.store_result(&assignment.attempt_token, b"result").await;
    assert_eq!(relay.tell(task_id, "proof", &agent.proof(&assignment, result)).await.0, 200);
    assert_eq!(flood.len(), FLOOD);
}
