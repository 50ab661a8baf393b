use super::*;

/// `{"a": [1, -2, "x"], "b": (None, True)}` by `pickle.dumps` of each protocol.
const DUMPS: [&[u8]; 6] = [
    b"(dp0\nVa\np1\n(lp2\nI1\naI-2\naVx\np3\nasVb\np4\n(NI01\ntp5\ns.",
    b"}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffX\x01\x00\x00\x00xq\x03eX\x01\x00\x00\x00bq\x04(NI01\ntq\x05u.",
    b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffX\x01\x00\x00\x00xq\x03eX\x01\x00\x00\x00bq\x04N\x88\x86q\x05u.",
    b"\x80\x03}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffX\x01\x00\x00\x00xq\x03eX\x01\x00\x00\x00bq\x04N\x88\x86q\x05u.",
    b"\x80\x04\x95\x20\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94]\x94(K\x01J\xfe\xff\xff\xff\x8c\x01x\x94e\x8c\x01b\x94N\x88\x86\x94u.",
    b"\x80\x05\x95\x20\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94]\x94(K\x01J\xfe\xff\xff\xff\x8c\x01x\x94e\x8c\x01b\x94N\x88\x86\x94u.",
];

#[test]
fn every_protocol_gives_the_same_values() {
    for bytes in DUMPS {
        let pickle = Pickle::read(bytes).unwrap();
        let Node::Dict(items) = pickle.node(pickle.top) else { panic!("{pickle:?}") };
        assert_eq!(items.iter().map(|i| pickle.text(i.0)).collect::<Vec<_>>(), [Some("a"), Some("b")]);
        let Node::List(list) = pickle.node(items[0].1) else { panic!("{pickle:?}") };
        assert_eq!((pickle.node(list[0]), pickle.node(list[1])), (&Node::Int(1), &Node::Int(-2)));
        assert_eq!(pickle.text(list[2]), Some("x"));
        assert_eq!(pickle.tuple(items[1].1).unwrap(), [NONE, TRUE]);
    }
}

#[test]
fn a_call_is_written_down_and_never_made() {
    // os.system("exit"), as an attacker writes it.
    let bytes = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00exit\x85R.";
    let pickle = Pickle::read(bytes).unwrap();
    let Node::Call { callable, args } = pickle.node(pickle.top) else { panic!("{pickle:?}") };
    assert_eq!(pickle.global(*callable).as_deref(), Some("os.system"));
    assert_eq!(pickle.text(pickle.tuple(*args).unwrap()[0]), Some("exit"));
}

#[test]
fn old_protocols_write_strings_numbers_and_instances_as_lines() {
    let pickle =
        Pickle::read(b"(S'a'\nL12345678901234567890123L\nL-7L\nF1.5\nI00\nPouter\nVb\\u20ac\nt.").unwrap();
    let items = pickle.tuple(pickle.top).unwrap();
    assert_eq!(pickle.text(items[0]), Some("a"));
    let nodes: Vec<&Node> = items[1..5].iter().map(|id| pickle.node(*id)).collect();
    assert_eq!(nodes, [&Node::Other, &Node::Int(-7), &Node::Other, &Node::Bool(false)]);
    let Node::Outside(key) = pickle.node(items[5]) else { panic!("{pickle:?}") };
    assert_eq!((pickle.text(*key), pickle.node(items[6])), (Some("outer"), &Node::Other));
    // os.system("exit") in both of its forms.
    for bytes in [&b"(S'exit'\nios\nsystem\n."[..], b"(cos\nsystem\nS'exit'\no."] {
        let pickle = Pickle::read(bytes).unwrap();
        let Node::Call { callable, args } = pickle.node(pickle.top) else { panic!("{pickle:?}") };
        assert_eq!(pickle.global(*callable).as_deref(), Some("os.system"));
        assert_eq!(pickle.text(pickle.tuple(*args).unwrap()[0]), Some("exit"));
    }
}

#[test]
fn deep_and_repeated_values_cost_no_more_than_their_bytes() {
    // A tuple in a tuple, a million deep; and a list that is doubled forty times.
    let mut deep = b"\x80\x02N".to_vec();
    deep.extend(std::iter::repeat_n(0x85, 1 << 20));
    deep.push(b'.');
    assert!(Pickle::read(&deep).unwrap().tuple(0).is_none());
    let mut wide = b"\x80\x02]q\x00".to_vec();
    for _ in 0..40 {
        wide.extend_from_slice(b"h\x00h\x00\x86q\x00");
    }
    wide.push(b'.');
    assert!(Pickle::read(&wide).unwrap().nodes.len() < 100);
}

#[test]
fn a_pickle_that_is_cut_short_or_lies_is_an_error() {
    for bytes in DUMPS {
        for end in 0..bytes.len() {
            assert!(Pickle::read(&bytes[..end]).is_err(), "{end}");
        }
    }
    for wrong in [
        &b"\x80\x02X\xff\xff\xff\x7fa."[..],
        b"\x80\x02h\x07.",
        b"\x80\x02R.",
        b"(0.",
        b"\x80\x02t.",
        b"\xff.",
        b"S1\n.",
        b"Sa\n.",
        b"gx\n.",
        b"g7\n.",
        b"(o.",
        b"ia\n.",
    ] {
        assert!(Pickle::read(wrong).is_err(), "{wrong:?}");
    }
}
