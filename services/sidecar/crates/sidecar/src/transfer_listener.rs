//! Connections that come to the KV plane: plain, or with mutual TLS, and who is at their other end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use crate::errors::CallError;
use crate::identity::{Identity, PeerRole, role_list};
use crate::tls::{Buffered, Tls, buffered, enlarge_writes, identity_of};
use crate::turns::Turns;

/// Who may pull.
const PULL_ROLES: &[PeerRole] = &[PeerRole::Prefill, PeerRole::Decode, PeerRole::Mixed, PeerRole::Store];
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
const CONNECTIONS_WAITING: usize = 64;
/// When the process has no descriptor left, accepting again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// First byte of a TLS connection: a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// What is known of a caller.
#[derive(Debug, Clone)]
pub enum Caller {
    /// This process speaks plain and asks nobody.
    Anyone,
    /// A valid certificate says so.
    Known(Identity),
    /// This process takes mutual TLS, and the peer came without, or without an identity: why.
    Refused(String),
}

/// A connection.
pub struct Connection {
    stream: Stream,
    caller: Caller,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<Buffered>>),
}

/// Accepts for as long as the receiver is read. Without `tls` connections are plain; with it they are encrypted, and plain ones come through
/// only to be told why they are refused.
pub fn connections(listener: TcpListener, tls: Option<Arc<Tls>>) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(CONNECTIONS_WAITING);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let Some(tls) = tls.clone() else {
                let connection = Connection {
                    stream: Stream::Plain(stream),
                    caller: Caller::Anyone,
                };
                if sender.send(Ok(connection)).await.is_err() {
                    return;
                }
                continue;
            };
            let sender = sender.clone();
            // Beside the others: one that is slow to say hello holds up nobody.
            tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE_MAX, shake_hands(stream, &tls)).await {
                    Ok(Ok(connection)) => {
                        if let Caller::Refused(why) = &connection.caller {
                            tracing::warn!(peer = %address, "a connection is refused: {why}");
                        }
                        let _ = sender.send(Ok(connection)).await;
                    }
                    Ok(Err(error)) => tracing::warn!(peer = %address, %error, "a TLS handshake failed"),
                    Err(_) => tracing::warn!(peer = %address, "a TLS handshake took more than {HANDSHAKE_MAX:?}"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

async fn shake_hands(stream: TcpStream, tls: &Tls) -> io::Result<Connection> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if first[0] != TLS_HANDSHAKE {
        let caller = Caller::Refused(
            "this process takes mutual TLS only and the caller speaks plain; give the caller --tls-ca, --tls-cert and --tls-key"
                .into(),
        );
        return Ok(Connection {
            stream: Stream::Plain(stream),
            caller,
        });
    }
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.current().server));
    let mut stream = acceptor.accept(buffered(stream)).await?;
    enlarge_writes(stream.get_mut().1);
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let caller = match certificate.map(identity_of) {
        Some(Ok(identity)) => Caller::Known(identity),
        Some(Err(why)) => Caller::Refused(format!("the caller's certificate names nobody: {why}")),
        None => Caller::Refused("the caller showed no certificate".into()),
    };
    Ok(Connection {
        stream: Stream::Tls(Box::new(stream)),
        caller,
    })
}

/// Lets in who may pull; a tonic interceptor.
///
/// # Errors
/// [`CallError::PermissionDenied`] with the role that was expected and who came.
pub fn admit_puller(request: Request<()>) -> Result<Request<()>, Status> {
    let denied = |message: String| Err(CallError::PermissionDenied(message).into());
    match request.extensions().get::<Peer>().map(|peer| &peer.caller) {
        Some(Caller::Anyone) => Ok(request),
        Some(Caller::Known(caller)) if PULL_ROLES.contains(&caller.role) => Ok(request),
        Some(Caller::Known(caller)) => {
            let expected = role_list(PULL_ROLES);
            denied(format!(
                "KvTransferService.Pull is for role {expected}; the caller is {caller}"
            ))
        }
        Some(Caller::Refused(why)) => denied(why.clone()),
        None => denied("the caller is unknown".into()),
    }
}

/// What requests are told of their connection.
#[derive(Clone)]
pub struct Peer {
    /// Who is at its other end.
    pub caller: Caller,
    /// The pulls on it.
    pub turns: Arc<Turns>,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer {
            caller: self.caller.clone(),
            turns: Arc::default(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
