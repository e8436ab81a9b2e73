use std::fs;

use crate::latency::tally::End;
use crate::{
    latency::{json, picture},
    support::{fate, record, run},
};

#[test]
fn records_survive_the_file() {
    let records = [
        record("inline", 78, &[run(&[1, 2], &[fate(0, 5, End::Answered)]), run(&[3], &[])]),
        record("offload/threads", 78, &[run(&[1], &[fate(0, 5, End::Refused)])]),
    ];
    let path = std::env::temp_dir().join(format!("tower-offload-records-{}.json", std::process::id()));
    json::write(&mut json::open_for_writing(&path).unwrap(), &records).unwrap();
    let read = json::read(&path);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, "{}\n").unwrap();
    let nonsense = json::read(&path).unwrap_err().to_string();
    fs::write(&path, "\n").unwrap();
    let empty = json::read(&path).unwrap_err().to_string();
    fs::remove_file(&path).unwrap();

    assert_eq!(text.lines().count(), 2);
    for field in ["\"variant\":\"inline\"", "\"load_pct\":78", "\"capacity_per_second\":100.0", "\"scene\":\"cpu\""] {
        assert!(text.contains(field), "{field} in {text}");
    }
    assert_eq!(serde_json::to_string(&read.unwrap()).unwrap(), serde_json::to_string(&records).unwrap());
    assert!(nonsense.contains("line 1: not a line of this benchmark"), "{nonsense}");
    assert!(empty.ends_with("is empty"), "{empty}");
}

#[test]
fn pictures_name_every_variant_and_escape_names() {
    let records = [record("inline", 78, &[run(&[1], &[])]), record("<b>&", 130, &[run(&[7], &[])])];
    let pictures = picture::all(&records).unwrap();
    assert_eq!(pictures.iter().map(|it| it.name).collect::<Vec<_>>(), ["latency.svg", "latency-percentiles.svg"]);
    for picture in pictures {
        assert!(picture.svg.contains("inline") && picture.svg.contains("&lt;b&gt;&amp;"), "{}", picture.svg);
        assert!(!picture.svg.contains("<b>"));
    }
    assert!(picture::all(&[]).unwrap().is_empty());
}
