use super::*;

#[test]
fn reasons_are_read_as_they_are_written() {
    let id = |digit: char| format!("0aaaaaaa-1111-{digit}111-8111-111111111111");
    for (digit, reason) in
        [('4', Reason::None), ('9', Reason::Sampled), ('a', Reason::Service), ('b', Reason::Client)]
    {
        assert_eq!(Reason::of(id(digit).as_bytes()), reason);
        assert_eq!(char::from(reason.digit()), digit);
    }
    assert_eq!(Reason::of(b"short"), Reason::None);
}
