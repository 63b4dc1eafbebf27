use super::*;

fn frame(kind: u8, flags: u8, stream: u32, length: usize) -> Vec<u8> {
    let mut bytes = vec![0, (length >> 8) as u8, length as u8, kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.resize(FRAME_HEAD + length, 0xff);
    bytes
}

fn watch() -> Watch {
    let mut watch =
        Watch::new(Limits::default(), Side::Server, 4096, HeadLimits { bytes: 60 * 1024, fields: 100 }, 0);
    watch.greeted = true;
    watch
}

/// HEADERS whose block is `:method: GET` and harmless padding.
fn head(flags: u8, stream: u32) -> Vec<u8> {
    let mut bytes = frame(HEADERS, flags | PADDED, stream, 30);
    bytes[FRAME_HEAD] = 28;
    bytes[FRAME_HEAD + 1] = 0x82;
    bytes
}

/// Gives it bytes in pieces and keeps what may not pass yet, as the guard does.
#[derive(Default)]
struct Feeder(Vec<u8>);

impl Feeder {
    fn feed(&mut self, watch: &mut Watch, bytes: &[u8], account: &Account) -> Option<Stop> {
        self.0.extend_from_slice(bytes);
        loop {
            match watch.walk(&self.0, account) {
                Walk::All => self.0.clear(),
                Walk::Hold { pass, .. } => drop(self.0.drain(..pass)),
                Walk::Exchange { pass, skip, .. } => {
                    self.0.drain(..pass + skip);
                    continue;
                }
                Walk::Stop { why, .. } => return Some(why),
            }
            return None;
        }
    }
}

/// The crate would end a connection after a hundred of them, however far apart.
#[test]
fn empty_frames_do_not_reach_the_crate() {
    let (mut watch, account) = (watch(), Account::default());
    let body = frame(DATA, 0, 1, 5);
    let pieces = [head(END_HEADERS, 1), body.clone(), frame(DATA, 0, 1, 0), body, frame(DATA, FLAG_1, 1, 0)];
    let mut bytes = pieces.concat();
    let mut passed = Vec::new();
    loop {
        match watch.walk(&bytes, &account) {
            Walk::All => break passed.append(&mut bytes),
            Walk::Exchange { pass, skip, with } => {
                passed.extend(bytes.drain(..pass));
                bytes.drain(..skip);
                passed.extend(with);
            }
            other => panic!("{other:?}"),
        }
    }
    let [head, first, _, second, end] = &pieces;
    assert_eq!(passed, [&head[..], first, second, end].concat());
}

/// How many of `one` pass, however the bytes are cut.
fn passes(one: &[u8], most: usize, prelude: &[u8], account: &Account) -> usize {
    let mut counts = [1, 7, 4096].map(|cut| {
        let mut watch = watch();
        let mut feeder = Feeder::default();
        let open = head(END_HEADERS, 1);
        assert_eq!(feeder.feed(&mut watch, &open, account), None);
        // It is not to be counted.
        (watch.opened, watch.data_received) = (0, 0);
        assert_eq!(feeder.feed(&mut watch, prelude, account), None);
        (0..most)
            .take_while(|_| one.chunks(cut).all(|piece| feeder.feed(&mut watch, piece, account).is_none()))
            .count()
    });
    counts.sort_unstable();
    assert_eq!(counts[0], counts[2], "the cuts must not matter");
    counts[0]
}

#[test]
fn floods_are_counted_as_envoy_does() {
    let account = Account::default();
    assert_eq!(passes(&frame(DATA, 0, 1, 0), 10, &[], &account), 1);
    assert_eq!(passes(&frame(PRIORITY, 0, 1, 5), 1000, &[], &account), 100);
    assert_eq!(passes(&frame(WINDOW_UPDATE, 0, 0, 4), 1000, &[], &account), 5);
    let stream = head(END_HEADERS, 3);
    assert_eq!(passes(&frame(PRIORITY, 0, 1, 5), 1000, &stream, &account), 200);
    assert_eq!(passes(&frame(WINDOW_UPDATE, 0, 0, 4), 1000, &stream, &account), 7);
    account.data_sent.set(3);
    assert_eq!(passes(&frame(WINDOW_UPDATE, 0, 0, 4), 1000, &[], &account), 65);
}

#[test]
fn control_frames_are_paid_for_by_work() {
    let account = Account::default();
    for (kind, stream, length) in [(PING, 0, 8), (SETTINGS, 0, 0), (RST_STREAM, 1, 4), (0x77, 1, 8)] {
        assert_eq!(passes(&frame(kind, 0, stream, length), 2000, &[], &account), 1000, "{kind}");
    }
    // Acknowledgements are asked for by us.
    assert_eq!(passes(&frame(PING, FLAG_1, 0, 8), 2000, &[], &account), 1000);
    account.pings.set(10_000);
    assert_eq!(passes(&frame(PING, FLAG_1, 0, 8), 2000, &[], &account), 2000);
    let mut work = Vec::new();
    for _ in 0..50 {
        work.extend(frame(DATA, 0, 1, 100));
    }
    assert_eq!(passes(&frame(PING, 0, 0, 8), 2000, &work, &account), 1050);
}

#[test]
fn half_a_head_is_held_back() {
    let account = Account::default();
    let mut watch = watch();
    let mut feeder = Feeder::default();
    let mut holds = |bytes: &[u8]| {
        assert_eq!(feeder.feed(&mut watch, bytes, &account), None);
        !feeder.0.is_empty()
    };
    let whole = head(END_HEADERS, 1);
    assert!(!holds(&whole));
    let next = head(END_HEADERS, 3);
    assert!(holds(&next[..5]));
    assert!(holds(&next[5..20]));
    assert!(!holds(&next[20..]));
    assert!(holds(&head(0, 5)), "CONTINUATION is to come");
    assert!(!holds(&frame(CONTINUATION, END_HEADERS, 5, 0)));
    assert!(!holds(&frame(DATA, 0, 5, 100)[..50]), "a body may be slow");
}

#[test]
fn wrong_frames_have_their_codes() {
    use Reason as R;
    let priority = |length| frame(PRIORITY, 0, 1, length);
    let mut window = frame(SETTINGS, 0, 0, 6);
    window[FRAME_HEAD..].copy_from_slice(&[0, 4, 0x80, 0, 0, 0]);
    let mut nothing = frame(WINDOW_UPDATE, 0, 0, 4);
    nothing[FRAME_HEAD..].fill(0);
    for (bytes, code) in [
        (frame(DATA, 0, 0, 3), R::PROTOCOL_ERROR),
        (frame(DATA, 0, 3, 3), R::PROTOCOL_ERROR),
        (head(END_HEADERS, 2), R::PROTOCOL_ERROR),
        (head(END_HEADERS, 0), R::PROTOCOL_ERROR),
        (priority(4), R::FRAME_SIZE_ERROR),
        (frame(RST_STREAM, 0, 1, 3), R::FRAME_SIZE_ERROR),
        (frame(RST_STREAM, 0, 3, 4), R::PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 0, 5), R::FRAME_SIZE_ERROR),
        (frame(SETTINGS, FLAG_1, 0, 6), R::FRAME_SIZE_ERROR),
        (frame(SETTINGS, FLAG_1, 0, 0), R::PROTOCOL_ERROR),
        (frame(DATA, PADDED, 1, 0), R::FRAME_SIZE_ERROR),
        (frame(DATA, PADDED, 1, 5), R::PROTOCOL_ERROR),
        ([head(END_HEADERS, 9), head(END_HEADERS, 5)].concat(), R::PROTOCOL_ERROR),
        (head(END_HEADERS, 1), R::STREAM_CLOSED),
        (frame(SETTINGS, 0, 1, 0), R::PROTOCOL_ERROR),
        (window, R::FLOW_CONTROL_ERROR),
        (frame(PUSH_PROMISE, 4, 1, 9), R::PROTOCOL_ERROR),
        (frame(PING, 0, 0, 7), R::FRAME_SIZE_ERROR),
        (frame(PING, 0, 1, 8), R::PROTOCOL_ERROR),
        (frame(GOAWAY, 0, 0, 7), R::FRAME_SIZE_ERROR),
        (nothing, R::PROTOCOL_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, 3), R::FRAME_SIZE_ERROR),
        (frame(CONTINUATION, 4, 1, 0), R::PROTOCOL_ERROR),
        ([head(0, 3), head(END_HEADERS, 5)].concat(), R::PROTOCOL_ERROR),
        (frame(0x77, 0, 0, MAX_FRAME + 1), R::FRAME_SIZE_ERROR),
    ] {
        let account = Account::default();
        let mut watch = watch();
        let mut feeder = Feeder::default();
        assert_eq!(feeder.feed(&mut watch, &head(END_HEADERS, 1), &account), None);
        assert_eq!(feeder.feed(&mut watch, &bytes, &account), Some(stop(code)), "{bytes:?}");
    }
}

#[test]
fn wrong_streams_are_exchanged_for_what_resets_them() {
    let account = Account::default();
    let mut watch = watch();
    let mut bytes = head(END_HEADERS, 1);
    let before = bytes.len();
    let mut update = frame(WINDOW_UPDATE, 0, 1, 4);
    update[FRAME_HEAD..].fill(0);
    bytes.extend_from_slice(&update);
    let with = headers(1, FLAG_1, POISON);
    assert_eq!(watch.walk(&bytes, &account), Walk::Exchange { pass: before, skip: 13, with });
    assert_eq!(account.malformed.get(), 1);
    // A block that does not fit one frame.
    let long = headers(3, FLAG_1, &vec![0; MAX_FRAME + 5]);
    assert_eq!(long.len(), MAX_FRAME + 5 + 2 * FRAME_HEAD);
    assert_eq!((long[4], long[FRAME_HEAD + MAX_FRAME + 4]), (FLAG_1, END_HEADERS));
}

#[test]
fn work_is_never_a_flood() {
    let account = Account::default();
    let mut watch = watch();
    let mut feeder = Feeder::default();
    for stream in 0..5000 {
        let mut pair = head(END_HEADERS, 2 * stream + 1);
        pair.extend(frame(DATA, FLAG_1, 2 * stream + 1, 0));
        assert_eq!(feeder.feed(&mut watch, &pair, &account), None, "{stream}");
    }
}

#[test]
fn time_forgives() {
    let account = Account::default();
    let mut watch = watch();
    let mut feeder = Feeder::default();
    let ping = frame(PING, 0, 0, 8);
    let mut passes = |watch: &mut Watch| {
        feeder.0.clear();
        feeder.feed(watch, &ping, &account).is_none()
    };
    while passes(&mut watch) {}
    // A second later a hundred more may come.
    watch.since = watch.since.map(|since| since - std::time::Duration::from_secs(1));
    let more = (0..1000).take_while(|_| passes(&mut watch)).count();
    assert!((90..=101).contains(&more), "{more}");
}
