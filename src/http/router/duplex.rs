//! Responses whose bodies a service takes and gives as it likes (`envoy.filters.http.ext_proc`).
//!
//! Comes in: the response's head, while its body is still on its way. Goes out: the head as the service wants it, and the
//! body's way, on which the service has been given what has come meanwhile.

use std::cell::RefCell;
use std::future::{poll_fn, Future};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use super::consult::{Collected, Consulted, Stopped};
use super::lent::Lent;
use super::respond::receiving;
use super::{Attempts, Failure};
use crate::config::Known;
use crate::http::exchange::Exchange;
use crate::http::filters;
use crate::http::filters::ext_proc::duplex::{self, Duplex};
use crate::http::filters::ext_proc::session::{Session, Side};
use crate::http::filters::ext_proc::Verdict;
use crate::http::h1::Framing;
use crate::http::io::OutBuf;
use crate::http::pump::{Out, Pump};
use crate::http::stages::Stage;

impl Attempts<'_> {
    /// Asks the service of `session` about the response, and gives it the body.
    pub(super) async fn consult_duplex(
        &mut self,
        ex: &mut Exchange<'_>,
        session: &Rc<RefCell<Session>>,
        asked: &mut Consulted<'_>,
    ) -> Result<(), Stopped> {
        let config = session.borrow().config.clone();
        let (asks, metadata) = (session.borrow().mode.response_head, session.borrow().metadata(ex));
        let ask = config.question_of_head(asked.head, false);
        let answer = asks.then(|| Session::ask(session.clone(), ask, metadata.clone()));
        let mut duplex = Duplex::new(session, Side::Response, metadata);
        let collected = asked.body.take();
        let Some(answer) = answer else {
            asked.head.fields.remove_known(Known::ContentLength);
            match collected {
                None => filters::look_at_download(ex, Stage::Duplex(Box::new(duplex))),
                Some(collected) => {
                    let whole = collected.give(&mut duplex);
                    self.hear_whole(ex, asked, duplex, whole).await?;
                }
            }
            return Ok(());
        };
        let mut answer = pin!(answer);
        let (said, begun) = match collected {
            Some(collected) => {
                let whole = collected.give(&mut duplex);
                (self.hear(ex, asked, answer.as_mut()).await?, Err((duplex, whole)))
            }
            None => {
                filters::look_at_download(ex, Stage::Duplex(Box::new(duplex)));
                let mut download = match asked.download.take() {
                    Some(download) => download,
                    None => Box::new(self.begin_download(ex, asked.framing, asked.connection)),
                };
                filters::on_download(ex, &mut download);
                (self.hear_while(ex, asked, &mut download, answer.as_mut()).await?, Ok(download))
            }
        };
        match config.hear_response(session, said, ex, asked.head, true) {
            Verdict::Reply(reply) => return Err(Stopped::Reply(reply)),
            Verdict::Go(Some(body), true) => {
                session.borrow_mut().replace_body(Side::Response);
                asked.head.fields.remove_known(Known::ContentLength);
                *asked.ends = body.is_empty();
                *asked.body = Some(Collected { body, trailers: None, whole: false });
                return Ok(());
            }
            Verdict::Go(..) => {}
        }
        asked.head.fields.remove_known(Known::ContentLength);
        match begun {
            Err((duplex, whole)) => self.hear_whole(ex, asked, duplex, whole).await?,
            Ok(mut download) => {
                // Where all of it has come, the head waits until the service has said something of it.
                if download.is_received() {
                    self.ready(ex, asked, &mut download).await?;
                }
                *asked.download = Some(download);
            }
        }
        Ok(())
    }

    /// The way of a body that begins before it is known how it will be written.
    fn begin_download(&self, ex: &Exchange<'_>, framing: Framing, connection: &Lent) -> Pump {
        let upstream = self.upstream();
        let trailers = self.takes_trailers(connection);
        let mut download = Pump::new(framing, false, trailers, upstream.http.max_response_headers).unseen();
        download.limit(ex.down.buffer_limit.min(upstream.per_connection_buffer_limit));
        download
    }

    /// All that the service makes of a body that it has been given whole.
    async fn hear_whole(
        &mut self,
        ex: &mut Exchange<'_>,
        asked: &mut Consulted<'_>,
        given: Duplex,
        whole: bool,
    ) -> Result<(), Stopped> {
        let answer = duplex::whole(given, ex.down.buffer_limit);
        let (body, trailers) = self.hear(ex, asked, answer).await?.map_err(Stopped::Reply)?;
        *asked.body = Some(Collected { body, trailers, whole });
        Ok(())
    }

    /// Waits for what the service says of the head while it is given the body.
    async fn hear_while<T>(
        &mut self,
        ex: &mut Exchange<'_>,
        asked: &mut Consulted<'_>,
        download: &mut Pump,
        mut answer: impl Future<Output = T> + Unpin,
    ) -> Result<T, Failure> {
        let said = poll_fn(|context| {
            self.poll_upload(ex, asked.connection, &mut asked.sent.out, context)?;
            if let Poll::Ready(said) = std::pin::Pin::new(&mut answer).poll(context) {
                return Poll::Ready(Ok(said));
            }
            // Nothing passes before the head does.
            let mut shelf = Out::Wire(OutBuf::default());
            let polled = download.poll_receive(asked.connection.source(), &mut shelf, |_| {}, context);
            if std::mem::take(&mut download.progress) {
                self.deadlines.touch();
            }
            if let Poll::Ready(Err(error)) = polled {
                return Poll::Ready(Err(receiving(error)));
            }
            self.poll_client(ex, context)
        })
        .await;
        ex.now = Instant::now();
        said
    }

    /// Waits until something of the body may pass.
    async fn ready(
        &mut self,
        ex: &mut Exchange<'_>,
        asked: &mut Consulted<'_>,
        download: &mut Pump,
    ) -> Result<(), Failure> {
        let ready = poll_fn(|context| {
            self.poll_upload(ex, asked.connection, &mut asked.sent.out, context)?;
            if let Poll::Ready(ready) = download.poll_ready(context) {
                return Poll::Ready(ready.map_err(receiving));
            }
            self.poll_client(ex, context)
        })
        .await;
        ex.now = Instant::now();
        ready
    }
}

impl Collected {
    /// Gives it to a service; whether the upstream has no more to say.
    fn give(self, duplex: &mut Duplex) -> bool {
        duplex.hold(self.body);
        duplex.hold_end(self.trailers);
        self.whole
    }
}
