//! A connection to RabbitMQ that gives the client library only frames that it can read, and the runtime with which
//! the client library takes such a connection.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use futures_core::Stream;
use futures_io::{AsyncRead, AsyncWrite};
use lapin::AsyncTcpStream;

use crate::body_limit::BodyLimit;
use crate::frames::Frames;

pub(crate) type Tcp = <Tokio as Reactor>::TcpStream;

/// A connection to RabbitMQ, encrypted or not.
pub(crate) struct ReadableStream {
    stream: AsyncTcpStream<Tcp>,
    frames: Frames,
}

impl ReadableStream {
    /// A connection on which these bodies are received.
    pub(crate) fn new(stream: AsyncTcpStream<Tcp>, limit: BodyLimit) -> Self {
        Self { stream, frames: Frames::new(limit) }
    }
}

impl fmt::Debug for ReadableStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadableStream").finish_non_exhaustive()
    }
}

impl AsyncRead for ReadableStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, frames } = self.get_mut();
        loop {
            let given = frames.give(out);
            if given > 0 || out.is_empty() {
                return Poll::Ready(Ok(given));
            }
            let received = ready!(Pin::new(&mut *stream).poll_read(context, frames.space()))?;
            if received == 0 {
                return Poll::Ready(Ok(0));
            }
            frames.received(received);
        }
    }
}

impl AsyncWrite for ReadableStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, parts)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_close(context)
    }
}

/// Tokio, with [`ReadableStream`] as the type of a connection.
#[derive(Debug, Clone)]
pub(crate) struct ReadableRuntime(Tokio);

impl ReadableRuntime {
    pub(crate) fn on(tokio: Tokio) -> Runtime<Self> {
        Runtime::new(Self(tokio))
    }
}

impl RuntimeKit for ReadableRuntime {}

impl Executor for ReadableRuntime {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        future: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        call: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(call)
    }
}

impl Reactor for ReadableRuntime {
    type TcpStream = ReadableStream;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connect = self.0.tcp_connect_addr(address);
        async move { Ok(ReadableStream::new(AsyncTcpStream::Plain(connect.await?), BodyLimit::NONE)) }
    }
}
