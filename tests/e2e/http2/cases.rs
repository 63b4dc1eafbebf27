//! The table: one exchange each, over every pair of protocols that its `pairs` name.

use super::client::{Ask, Client};
use super::origin::{Act, Body, Break, Pairs, Plan};
use h2::Reason;

/// What may differ.
#[derive(Debug, Clone)]
pub struct Difference {
    /// Heading in `docs/differences.md`.
    pub id: &'static str,
    pub pairs: &'static str,
    /// Prefixes of the lines that are not compared.
    pub keys: &'static [&'static str],
    /// Depends on timing: both may be equal.
    pub maybe: bool,
    /// What Outrigger's lines of these keys are.
    pub ours: &'static [(&'static str, &'static str)],
}

/// An exchange.
#[derive(Debug, Clone)]
pub struct Case {
    pub name: &'static str,
    pub ask: Ask,
    pub plan: Plan,
    /// `downstream>upstream`, where `*` is either.
    pub pairs: &'static str,
    /// Through the listener that passes interim responses on.
    pub interim: bool,
    pub differences: Vec<Difference>,
}

/// A GET that is answered with two bytes.
fn case(name: &'static str) -> Case {
    Case {
        name,
        ask: Ask {
            method: "GET",
            path: "/a",
            authority: "t.test",
            headers: vec![],
            body: Body::None,
            trailers: vec![],
            websocket: false,
            client: Client::Whole,
        },
        plan: Plan {
            at_head: false,
            after: 0,
            interim: vec![],
            act: Act::Answer { status: 200, headers: vec![], body: Body::Fixed(2), trailers: vec![] },
        },
        pairs: "*>*",
        interim: false,
        differences: vec![],
    }
}

impl Case {
    fn method(mut self, method: &'static str) -> Case {
        self.ask.method = method;
        self
    }

    fn path(mut self, path: &'static str) -> Case {
        self.ask.path = path;
        self
    }

    fn authority(mut self, authority: &'static str) -> Case {
        self.ask.authority = authority;
        self
    }

    fn headers(mut self, headers: &[(&'static str, &'static str)]) -> Case {
        self.ask.headers.extend_from_slice(headers);
        self
    }

    /// A POST of this body.
    fn post(mut self, body: Body) -> Case {
        self.ask.method = "POST";
        self.ask.body = body;
        self
    }

    fn trailers(mut self, trailers: &[(&'static str, &'static str)]) -> Case {
        self.ask.trailers = trailers.to_vec();
        self
    }

    fn client(mut self, client: Client) -> Case {
        self.ask.client = client;
        self
    }

    fn websocket(mut self) -> Case {
        self.ask.websocket = true;
        self
    }

    /// The request of a gRPC client.
    fn grpc(self) -> Case {
        self.headers(&[("content-type", "application/grpc"), ("te", "trailers")]).post(Body::Streamed(7, 1))
    }

    fn act(mut self, act: Act) -> Case {
        self.plan.act = act;
        self
    }

    fn answer(self, status: u16, headers: &[(&'static str, &'static str)], body: Body) -> Case {
        self.answer_with(status, headers, body, &[])
    }

    fn answer_with(
        self,
        status: u16,
        headers: &[(&'static str, &'static str)],
        body: Body,
        trailers: &[(&'static str, &'static str)],
    ) -> Case {
        let (headers, trailers): (Pairs, Pairs) = (headers.to_vec(), trailers.to_vec());
        self.act(Act::Answer { status, headers, body, trailers })
    }

    fn at_head(mut self) -> Case {
        self.plan.at_head = true;
        self
    }

    /// Of the request's body the origin waits for so many bytes.
    fn after(mut self, count: usize) -> Case {
        self.plan.after = count;
        self
    }

    fn interim(mut self, status: u16, headers: &[(&'static str, &'static str)]) -> Case {
        self.plan.interim.push((status, headers.to_vec()));
        self
    }

    fn passing_interim(mut self) -> Case {
        self.interim = true;
        self
    }

    fn pairs(mut self, pairs: &'static str) -> Case {
        self.pairs = pairs;
        self
    }

    /// Lines that differ over these pairs, for a reason that `docs/differences.md` gives under `id`.
    fn differs(mut self, id: &'static str, pairs: &'static str, keys: &'static [&'static str]) -> Case {
        self.differences.push(Difference { id, pairs, keys, maybe: false, ours: &[] });
        self
    }

    /// What Outrigger does where it differs as the last entry says.
    fn ours(mut self, ours: &'static [(&'static str, &'static str)]) -> Case {
        if let Some(last) = self.differences.last_mut() {
            last.ours = ours;
        }
        self
    }

    /// The same where it depends on timing.
    fn may_differ(mut self, id: &'static str, pairs: &'static str, keys: &'static [&'static str]) -> Case {
        self.differences.push(Difference { id, pairs, keys, maybe: true, ours: &[] });
        self
    }
}

const BIG: usize = 200_000;
/// What another try changes.
const REPLAYED: &[&str] = &["log[0]", "response", "origin[1]", "origin[2]", "origin[3]"];
const CANCEL: Break = Break::Reset(Reason::CANCEL);
const INTERNAL: Break = Break::Reset(Reason::INTERNAL_ERROR);

pub fn cases() -> Vec<Case> {
    let mut all = bodies();
    all.extend(fields());
    all.extend(early_and_interim());
    all.extend(tunnels());
    all.extend(breaks());
    all.extend(replies());
    all
}

fn bodies() -> Vec<Case> {
    vec![
        case("no body"),
        case("small, with lengths").post(Body::Fixed(5)),
        case("large, with lengths").post(Body::Fixed(BIG)).answer(200, &[], Body::Fixed(BIG)),
        case("a length of nothing").post(Body::Fixed(0)).answer(200, &[], Body::Fixed(0)),
        case("a POST without a body").method("POST"),
        case("small, streamed").post(Body::Streamed(5, 3)).answer(200, &[], Body::Streamed(4, 3)),
        case("large, streamed").post(Body::Streamed(20_000, 10)).answer(200, &[], Body::Streamed(20_000, 10)),
        case("a GET with a body").post(Body::Streamed(5, 1)).method("GET"),
        case("request trailers").post(Body::Streamed(5, 2)).trailers(&[("x-late", "1"), ("x-later", "2")]),
        case("response trailers").answer_with(
            200,
            &[],
            Body::Streamed(5, 2),
            &[("x-late", "yes"), ("x-later", "2")],
        ),
        case("trailers both ways, large")
            .post(Body::Streamed(20_000, 10))
            .trailers(&[("x-late", "1")])
            .answer_with(200, &[], Body::Streamed(20_000, 10), &[("x-late", "yes")]),
        case("trailers after a length")
            .answer_with(200, &[], Body::Fixed(5), &[("x-late", "yes")])
            .pairs("*>h2"),
        case("HEAD").method("HEAD").answer(200, &[("content-length", "5")], Body::None),
        case("HEAD without a length").method("HEAD").answer(200, &[("x-head", "yes")], Body::None),
        case("204").answer(204, &[], Body::None),
        case("304").answer(304, &[("etag", "\"x\"")], Body::None),
        case("304 with a length").answer(304, &[("content-length", "5")], Body::None),
        case("an empty 200").answer(200, &[("x-empty", "yes")], Body::None),
        case("an empty 404").answer(404, &[], Body::None),
        case("a DELETE with a body").post(Body::Fixed(5)).method("DELETE"),
        case("gRPC").grpc().answer_with(
            200,
            &[("content-type", "application/grpc")],
            Body::Streamed(7, 2),
            &[("grpc-status", "0"), ("grpc-message", "fine")],
        ),
        case("gRPC, trailers only").grpc().answer(
            200,
            &[("content-type", "application/grpc"), ("grpc-status", "5"), ("grpc-message", "none")],
            Body::None,
        ),
        case("gRPC, failed in the end").grpc().answer_with(
            200,
            &[("content-type", "application/grpc")],
            Body::Streamed(7, 1),
            &[("grpc-status", "13"), ("grpc-message", "a%20b")],
        ),
    ]
}

fn fields() -> Vec<Case> {
    vec![
        case("cookies").headers(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]).answer(
            200,
            &[("set-cookie", "x=1"), ("set-cookie", "y=2")],
            Body::Fixed(2),
        ),
        case("fields several times").headers(&[("x-two", "1"), ("x-one", "a"), ("x-two", "2")]).answer(
            200,
            &[("x-two", "1"), ("x-one", "a"), ("x-two", "2")],
            Body::Fixed(2),
        ),
        case("a path with a query").path("/a/b%20c?x=1&y=%2f"),
        case("te: trailers").headers(&[("te", "trailers")]),
        case("te: gzip").headers(&[("te", "gzip")]).pairs("h1>*"),
        case("fields of the connection")
            .headers(&[("connection", "keep-alive, x-gone"), ("keep-alive", "timeout=5"), ("x-gone", "1")])
            .pairs("h1>*"),
        case("fields of the origin's connection")
            .answer(
                200,
                &[("connection", "keep-alive"), ("keep-alive", "timeout=5"), ("proxy-connection", "x")],
                Body::Fixed(2),
            )
            .pairs("*>h1"),
        case("an empty value").headers(&[("x-empty", "")]).answer(200, &[("x-empty", "")], Body::Fixed(2)),
        case("user agent and request id").headers(&[
            ("user-agent", "tests/1"),
            ("x-request-id", "11111111-2222-4333-8444-555555555555"),
            ("accept", "*/*"),
            ("x-forwarded-for", "10.0.0.1"),
        ]),
        case("names with underscores").headers(&[("x_under", "1")]).answer(
            200,
            &[("y_under", "2")],
            Body::Fixed(2),
        ),
        case("OPTIONS").method("OPTIONS").path("/a"),
        case("another method").method("PURGE"),
        case("a direct response").path("/direct"),
        case("a direct response to a body").path("/direct").post(Body::Fixed(5)),
        case("a direct response to HEAD").path("/direct").method("HEAD"),
    ]
}

fn early_and_interim() -> Vec<Case> {
    // What has come by then differs from run to run, so the origin waits for what the client sends first.
    let early = |name| case(name).post(Body::Streamed(10, 2)).client(Client::Hold).at_head().after(10);
    let expect = |name| case(name).headers(&[("expect", "100-continue")]).client(Client::Expect);
    vec![
        early("an early answer"),
        early("an early answer, large")
            .answer(200, &[], Body::Streamed(20_000, 10))
            .may_differ("early-answer", "h2>*", &["request", "response.body", "response.end"])
            .ours(&[("response.end", "complete")]),
        early("an early refusal").answer(413, &[], Body::Fixed(9)),
        early("an early answer, with a length").post(Body::Fixed(20)),
        early("an early answer with nothing after its head").answer(200, &[], Body::None),
        early("a direct response before the body").path("/direct"),
        case("103, not passed on").interim(103, &[("link", "</x>")]),
        case("103").interim(103, &[("link", "</x>")]).passing_interim(),
        case("103 twice")
            .interim(103, &[("link", "</x>")])
            .interim(103, &[("link", "</y>")])
            .passing_interim()
            .differs("interim-responses", "*>*", &["interim[1]"]),
        case("102").interim(102, &[("x-in", "1")]).passing_interim(),
        expect("100-continue").post(Body::Fixed(5)),
        expect("100-continue, streamed").post(Body::Streamed(5, 2)),
        expect("100-continue by the origin").post(Body::Fixed(5)).interim(100, &[]).passing_interim(),
        expect("100-continue refused by the origin")
            .post(Body::Fixed(5))
            .at_head()
            .answer(417, &[], Body::Fixed(2))
            .passing_interim(),
    ]
}

fn tunnels() -> Vec<Case> {
    const KEYS: &[&str] = &["origin[0].header.sec-websocket-key", "response.header.sec-websocket-accept"];
    let websocket = |name| {
        case(name)
            .websocket()
            .path("/ws")
            .act(Act::Tunnel)
            .client(Client::Tunnel(b"\x81\x05hello\0"))
            .may_differ("websocket-key", "h1>h2", KEYS)
            .may_differ("websocket-key", "h2>h1", KEYS)
    };
    let connect = |name| {
        case(name)
            .method("CONNECT")
            .authority("t.test:443")
            .act(Act::Tunnel)
            .client(Client::Tunnel(b"through"))
    };
    vec![
        websocket("websocket").differs("tunnel-ends", "h1>h2", &["origin[0].end"]).differs(
            "tunnel-ends",
            "h2>h1",
            &["log[0].details", "log[0].flags", "response.body", "response.end"],
        ),
        websocket("websocket, large")
            .client(Client::Tunnel(&[b'x'; 100_000]))
            .differs("tunnel-ends", "h1>h2", &["origin[0].end"])
            .differs(
                "tunnel-ends",
                "h2>h1",
                &["log[0].details", "log[0].flags", "response.body", "response.end"],
            ),
        websocket("websocket that the origin refuses")
            .at_head()
            .answer(403, &[], Body::Fixed(2))
            .client(Client::Hold),
        websocket("websocket that the origin answers with 200 and a body")
            .at_head()
            .answer(200, &[], Body::Fixed(2))
            .client(Client::Hold)
            .pairs("*>h1"),
        websocket("websocket that the client breaks off").client(Client::BreakTunnel(b"hello")).differs(
            "tunnel-ends",
            "h1>h2",
            &["origin[0].end"],
        ),
        websocket("websocket that the origin closes").act(Act::TunnelBreak(Break::Close)).differs(
            "tunnel-ends",
            "h2>h1",
            &["response.end"],
        ),
        websocket("websocket that the origin resets").act(Act::TunnelBreak(INTERNAL)),
        websocket("websocket without a route").authority("none.test").client(Client::Hold),
        websocket("websocket to nobody").path("/refused").client(Client::Hold).differs(
            "tunnel-ends",
            "h2>*",
            &["request"],
        ),
        connect("CONNECT").differs("tunnel-ends", "h1>h2", &["origin[0].end"]).differs(
            "tunnel-ends",
            "h2>h1",
            &["log[0].details", "log[0].flags", "response.body", "response.end"],
        ),
        connect("CONNECT that the origin refuses")
            .at_head()
            .answer(403, &[], Body::Fixed(2))
            .client(Client::Hold),
        connect("CONNECT that the client breaks off").client(Client::BreakTunnel(b"hello")).differs(
            "tunnel-ends",
            "h1>h2",
            &["origin[0].end"],
        ),
        connect("CONNECT ended here")
            .authority("terminate.test:443")
            .client(Client::Tunnel(b"GET /in HTTP/1.1\r\n"))
            .pairs("*>h1"),
        connect("CONNECT without a route").authority("none.test:443").client(Client::Hold),
    ]
}

fn breaks() -> Vec<Case> {
    let retry = |name| case(name).path("/retry");
    vec![
        case("the client breaks off its body").post(Body::Streamed(1000, 2)).client(Client::BreakRequest),
        case("the client breaks off its body, with a length")
            .post(Body::Fixed(2000))
            .client(Client::BreakRequest),
        case("the client breaks off the answer").act(Act::Stall(Some(10))).client(Client::BreakResponse),
        case("the origin resets before its head").act(Act::Break(None, INTERNAL)),
        case("the origin cancels before its head").act(Act::Break(None, CANCEL)),
        case("the origin says protocol error before its head")
            .act(Act::Break(None, Break::Reset(Reason::PROTOCOL_ERROR)))
            .pairs("*>h2"),
        case("the origin resets a POST").post(Body::Fixed(5)).act(Act::Break(None, INTERNAL)),
        case("the origin closes before its head").act(Act::Break(None, Break::Close)).may_differ(
            "replay",
            "*>*",
            &["origin[1]"],
        ),
        case("the origin closes on a POST").post(Body::Fixed(5)).act(Act::Break(None, Break::Close)),
        case("the origin resets after its head").act(Act::Break(Some(0), INTERNAL)),
        case("the origin resets its body").act(Act::Break(Some(10), INTERNAL)),
        case("the origin cancels its body").act(Act::Break(Some(10), CANCEL)),
        case("the origin ends its body with no error")
            .act(Act::Break(Some(10), Break::Reset(Reason::NO_ERROR)))
            .pairs("*>h2"),
        case("the origin closes in its body").act(Act::Break(Some(10), Break::Close)),
        case("the origin resets a gRPC call").grpc().act(Act::Break(None, INTERNAL)),
        case("the origin resets a gRPC answer").grpc().act(Act::Break(Some(10), INTERNAL)),
        case("the origin refuses once")
            .act(Act::RefuseOnce)
            .differs("replay-refused", "*>h2", REPLAYED)
            .ours(&[("response.status", "200"), ("response.body", "ab")]),
        case("the origin refuses a POST once")
            .post(Body::Fixed(1000))
            .act(Act::RefuseOnce)
            .differs("replay-refused", "*>h2", REPLAYED)
            .ours(&[("response.status", "200"), ("response.body", "ab")]),
        case("the origin refuses a stream of a body once")
            .post(Body::Streamed(1000, 3))
            .trailers(&[("x-late", "1")])
            .act(Act::RefuseOnce)
            .differs("replay-refused", "*>h2", REPLAYED)
            .ours(&[("response.status", "200"), ("response.body", "ab")]),
        case("the origin refuses a gRPC call once")
            .grpc()
            .act(Act::RefuseOnce)
            .differs("replay-refused", "*>h2", REPLAYED)
            .ours(&[("response.status", "200"), ("response.body", "ab")]),
        case("the origin refuses always")
            .act(Act::Break(None, Break::Reset(Reason::REFUSED_STREAM)))
            .differs("replay-refused", "*>h2", &["origin[1]", "origin[2]", "origin[3]"])
            .pairs("*>h2"),
        retry("a refused request, with a retry policy").act(Act::RefuseOnce),
        retry("a refused POST, with a retry policy").post(Body::Fixed(1000)).act(Act::RefuseOnce),
        retry("the origin resets every try").act(Act::Break(None, INTERNAL)).may_differ(
            "replay",
            "*>h1",
            &["origin[3]"],
        ),
    ]
}

fn replies() -> Vec<Case> {
    vec![
        case("no route").authority("none.test"),
        case("no route for a body").authority("none.test").post(Body::Fixed(BIG)),
        case("no route for gRPC").authority("none.test").grpc(),
        case("nobody is healthy").path("/empty"),
        case("nobody is healthy for gRPC").path("/empty").grpc(),
        case("nobody listens").path("/refused"),
        case("nobody listens for a POST").path("/refused").post(Body::Fixed(5)).may_differ(
            "uncounted-body",
            "*>*",
            &["log[0].received"],
        ),
        case("nobody listens for gRPC").path("/refused").grpc().may_differ(
            "uncounted-body",
            "*>*",
            &["log[0].received"],
        ),
        case("the route's timeout").path("/timeout").act(Act::Stall(None)),
        case("the route's timeout for a POST").path("/timeout").post(Body::Fixed(5)).act(Act::Stall(None)),
        case("the route's timeout for gRPC").path("/timeout").grpc().act(Act::Stall(None)),
        case("the route's timeout in the answer").path("/timeout").act(Act::Stall(Some(10))),
        case("the longest life").path("/duration").act(Act::Stall(None)),
        case("the longest life for gRPC").path("/duration").grpc().act(Act::Stall(None)),
        case("the longest life in the answer").path("/duration").act(Act::Stall(Some(10))),
        case("nothing moves").path("/idle").act(Act::Stall(None)),
        case("nothing moves in the answer").path("/idle").act(Act::Stall(Some(10))),
        case("a HEAD without a route").authority("none.test").method("HEAD"),
    ]
}
