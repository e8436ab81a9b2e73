use http::HeaderValue;

use super::*;

fn value(field: [u8; FIELD_LENGTH]) -> HeaderValue {
    HeaderValue::from_bytes(&field[PREFIX.len()..]).unwrap()
}

#[test]
fn mark_is_taken_once() {
    let mark = Mark::new();
    for number in [1, 127, 128, 200_001, 0x7fff_ffff] {
        let stream = StreamId::new(number);
        let mut fields = HeaderMap::from_iter([(http::header::HOST, HeaderValue::from_static("site"))]);
        fields.append(NAME, value(mark.field(stream)));
        assert_eq!(mark.take(&mut fields), Some(stream));
        assert_eq!(mark.take(&mut fields), None);
        assert_eq!(fields.len(), 1);
    }
}

/// Only the mark is removed, and the order of the other values stays.
#[test]
fn fields_of_the_client_are_kept() {
    let (mark, mut fields) = (Mark::new(), HeaderMap::new());
    for age in ["1", "2", "3"] {
        fields.append(NAME, HeaderValue::from_static(age));
    }
    let before = fields.clone();
    assert_eq!(mark.take(&mut fields), None);
    assert_eq!(fields, before);
    fields.append(NAME, value(mark.field(StreamId::new(9))));
    assert_eq!(mark.take(&mut fields), Some(StreamId::new(9)));
    assert_eq!(fields.get_all(NAME).iter().collect::<Vec<_>>(), before.get_all(NAME).iter().collect::<Vec<_>>());
}

#[test]
fn mark_of_another_connection_is_not_taken() {
    let (mark, other) = (Mark::new(), Mark::new());
    let mut fields = HeaderMap::from_iter([(NAME, value(other.field(StreamId::new(1))))]);
    assert_eq!(mark.take(&mut fields), None);
    assert_eq!(fields.len(), 1);
}

/// A map has room for 24 576 names, of which the last one is that of the mark.
#[test]
fn mark_is_taken_from_a_full_map() {
    let mark = Mark::new();
    for ages in [0, 1, 2] {
        let mut fields = HeaderMap::new();
        for _ in 0..ages {
            fields.append(NAME, HeaderValue::from_static("1"));
        }
        let mut names = (0..).map(|number| http::HeaderName::try_from(format!("x-{number}")).unwrap());
        while fields.keys_len() < 24_575 {
            fields.insert(names.next().unwrap(), HeaderValue::from_static("1"));
        }
        fields.append(NAME, value(mark.field(StreamId::new(9))));
        assert_eq!(mark.take(&mut fields), Some(StreamId::new(9)), "{ages}");
        assert_eq!(fields.get_all(NAME).iter().count(), ages);
    }
}
