//! The exchange over HTTP/1.

use super::*;
use crate::harness::http1::{Framing, Message, Reader};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// Makes the exchange over HTTP/1.
pub async fn http1(port: u16, ask: &Ask, origin: &Origin) -> Heard {
    let stream = connect(port).await;
    let local = stream.local_addr().expect("an address").port();
    let (read, mut write) = stream.into_split();
    let mut reader = Reader::new(read);
    let (tell, progress) = watch::channel(Progress::Nothing);
    let (sent, mut lines) = tokio::join!(
        give_http1(ask, &mut write, progress, origin),
        take_http1(ask, &mut reader, &tell, origin)
    );
    if let Some(sent) = sent {
        line(&mut lines, "request", sent);
    }
    if !matches!(ask.client, Client::BreakRequest | Client::BreakResponse | Client::BreakTunnel(_)) {
        let kept = probe_http1(&mut reader, &mut write).await;
        line(&mut lines, "connection", kept);
    }
    Heard { lines, port: local }
}

async fn give_http1(
    ask: &Ask,
    stream: &mut OwnedWriteHalf,
    mut progress: watch::Receiver<Progress>,
    origin: &Origin,
) -> Option<String> {
    let target = if ask.method == "CONNECT" { ask.authority } else { ask.path };
    let mut text = format!("{} {target} HTTP/1.1\r\nhost: {}\r\n", ask.method, ask.authority);
    for (name, value) in &ask.headers {
        text += &format!("{name}: {value}\r\n");
    }
    if ask.websocket {
        text += "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                 sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    }
    let chunked = matches!(ask.body, Body::Streamed(..)) || !ask.trailers.is_empty();
    match ask.body {
        _ if chunked => text += "transfer-encoding: chunked\r\n",
        Body::Fixed(length) => text += &format!("content-length: {length}\r\n"),
        _ => {}
    }
    text += "\r\n";
    let mut text = text.into_bytes();
    let framed = |pieces: &[Bytes], last: bool| {
        let mut out = Vec::new();
        for piece in pieces {
            if chunked {
                out.extend(format!("{:x}\r\n", piece.len()).bytes());
            }
            out.extend_from_slice(piece);
            if chunked {
                out.extend(b"\r\n");
            }
        }
        if chunked && last {
            out.extend(b"0\r\n");
            for (name, value) in &ask.trailers {
                out.extend(format!("{name}: {value}\r\n").bytes());
            }
            out.extend(b"\r\n");
        }
        out
    };
    let reset = |stream: &OwnedWriteHalf| {
        let stream: &TcpStream = stream.as_ref();
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    };
    let (first, rest) = halves(&ask.body);
    let mut all = first.clone();
    all.extend(rest.iter().cloned());
    if matches!(ask.client, Client::Whole | Client::BreakResponse) {
        // In one go, so that what a proxy has of it at a time is not left to chance.
        text.extend(framed(&all, true));
    }
    let _ = stream.write_all(&text).await;
    match ask.client {
        Client::Whole => {}
        Client::Expect => {
            until(&mut progress, Progress::Continue).await;
            if *progress.borrow() >= Progress::Head {
                return Some("not wanted".to_string());
            }
            let _ = stream.write_all(&framed(&all, true)).await;
        }
        Client::Hold => {
            let _ = stream.write_all(&framed(&first, false)).await;
            until(&mut progress, Progress::Over).await;
            let _ = stream.write_all(&framed(&rest, true)).await;
        }
        Client::BreakRequest => {
            let _ = stream.write_all(&framed(&first, false)).await;
            arrived(origin, &first).await;
            reset(stream);
        }
        Client::BreakResponse => {
            until(&mut progress, Progress::Data).await;
            reset(stream);
        }
        Client::Tunnel(bytes) | Client::BreakTunnel(bytes) => {
            until(&mut progress, Progress::Head).await;
            let _ = stream.write_all(bytes).await;
            until(&mut progress, Progress::Data).await;
            if matches!(ask.client, Client::BreakTunnel(_)) {
                reset(stream);
            } else {
                let _ = stream.shutdown().await;
            }
        }
    }
    None
}

async fn take_http1(
    ask: &Ask,
    reader: &mut Reader<OwnedReadHalf>,
    progress: &watch::Sender<Progress>,
    origin: &Origin,
) -> Lines {
    let mut lines = Lines::new();
    if ask.client == Client::BreakRequest {
        return lines;
    }
    let all = take_all_http1(ask, reader, progress, origin, &mut lines);
    if timeout(PATIENCE, all).await.is_err() {
        line(&mut lines, "response.end", "nothing more came");
    }
    progress.send_replace(Progress::Over);
    lines
}

fn message(lines: &mut Lines, place: &str, message: &Message) {
    line(lines, &format!("{place}.status"), message.status().to_string());
    head(lines, place, &message.headers);
}

async fn take_all_http1(
    ask: &Ask,
    reader: &mut Reader<OwnedReadHalf>,
    progress: &watch::Sender<Progress>,
    origin: &Origin,
    lines: &mut Lines,
) {
    let mut interims = 0;
    let mut answer = loop {
        let answer = match reader.head().await {
            Ok(answer) => answer,
            Err(error) => return line(lines, "response.end", format!("closed ({error})")),
        };
        if answer.status() >= 200 || answer.status() == 101 {
            break answer;
        }
        message(lines, &format!("interim[{interims}]"), &answer);
        interims += 1;
        if answer.status() == 100 {
            progress.send_replace(Progress::Continue);
        }
    };
    message(lines, "response", &answer);
    progress.send_replace(Progress::Head);
    origin.go();
    let connected = ask.method == "CONNECT" && answer.status() == 200;
    if connected || answer.status() == 101 {
        let (Client::Tunnel(bytes) | Client::BreakTunnel(bytes)) = ask.client else { return };
        while reader.buffered.len() < bytes.len() && reader.fill().await.unwrap_or(false) {}
        progress.send_replace(Progress::Data);
        if matches!(ask.client, Client::BreakTunnel(_)) {
            return;
        }
        let mut end = "complete";
        loop {
            match reader.fill().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => {
                    end = "closed";
                    break;
                }
            }
        }
        line(lines, "response.body", shown(&std::mem::take(&mut reader.buffered)));
        return line(lines, "response.end", end);
    }
    answer.framing = Reader::<OwnedReadHalf>::response_framing(&answer, ask.method == "HEAD");
    let framing = match answer.framing {
        Framing::Empty => "none",
        Framing::Length(_) => "content-length",
        Framing::Chunked => "chunked",
        Framing::UntilClose => "until close",
    };
    line(lines, "response.framing", framing);
    if answer.framing != Framing::Empty && answer.framing != Framing::Length(0) {
        while reader.buffered.is_empty() && reader.fill().await.unwrap_or(false) {}
        progress.send_replace(Progress::Data);
    }
    if ask.client == Client::BreakResponse {
        return;
    }
    let read = reader.body(&mut answer).await;
    line(lines, "response.body", shown(&answer.body));
    for (name, value) in &answer.trailers {
        lines.push((format!("response.trailer.{}", name.to_ascii_lowercase()), value.clone()));
    }
    line(lines, "response.end", if read.is_ok() && answer.complete { "complete" } else { "closed" });
}

async fn probe_http1(reader: &mut Reader<OwnedReadHalf>, stream: &mut OwnedWriteHalf) -> String {
    if stream.write_all(b"GET /probe HTTP/1.1\r\nhost: probe.test\r\n\r\n").await.is_err() {
        return "closed".to_string();
    }
    match timeout(PATIENCE, reader.response(false)).await {
        Ok(Ok(answer)) if answer.text() == "probe" => "kept".to_string(),
        Ok(Ok(answer)) => format!("answers the next request with {}", answer.start_line),
        Ok(Err(_)) => "closed".to_string(),
        Err(_) => "does not answer the next request".to_string(),
    }
}
