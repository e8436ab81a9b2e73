use std::collections::BTreeSet;

use super::rig::{Rig, get, open};
use crate::{
    StoreError,
    service::{Access, openapi::document, routes::ROUTES},
};

#[tokio::test]
async fn the_document_is_served_and_every_reference_in_it_leads_somewhere() {
    let reply = get(&Rig::new().await.closed_service(), "/openapi.json").await;
    assert_eq!(reply.header("content-type"), "application/json");
    let document = reply.json();
    assert_eq!(document["openapi"], "3.1.0");
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(references.len() > 10);
    for reference in references {
        assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
    }
    let parameters = document["paths"]["/{id}"]["delete"]["parameters"].as_array().unwrap();
    assert_eq!((&parameters[0]["name"], &parameters[0]["required"]), (&"id".into(), &true.into()));
}

fn collect(value: &serde_json::Value, references: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            references.extend(fields.get("$ref").and_then(|text| text.as_str()).map(str::to_owned));
            fields.values().for_each(|value| collect(value, references));
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| collect(value, references)),
        _ => {}
    }
}

/// What the document says, and what was seen: each answer of each route, and no other.
#[tokio::test]
async fn every_answer_that_is_documented_is_given() {
    let mut seen = BTreeSet::new();
    for setting in ["open", "denied", "closed", "no streams", "unavailable", "broken"] {
        let rig = Rig::new().await;
        let (queued, running) = (rig.accept("a").await, rig.accept("a").await);
        let (done, evicted) = (rig.accept("a").await, rig.accept("a").await);
        for id in [running, evicted] {
            rig.start(id).await;
        }
        rig.succeed(evicted).await;
        rig.evict_all_final().await;
        rig.start(done).await;
        rig.succeed(done).await;
        let service = match setting {
            "denied" => rig.service().authorize(|_, _| Access::Denied),
            "no streams" => rig.service().max_streams(0),
            _ => rig.service(),
        };
        match setting {
            "closed" => rig.close(),
            "unavailable" => rig.fail_with(|| StoreError::unavailable("")),
            "broken" => rig.fail_with(|| StoreError::other("")),
            _ => {}
        }
        for route in ROUTES {
            let ids = [queued.to_string(), running.to_string(), done.to_string(), evicted.to_string(), "x".to_owned()];
            let ids = if route.path.contains("{id}") { &ids[..] } else { &ids[..1] };
            for (id, query) in ids.iter().flat_map(|id| [(id, ""), (id, "?limit=x")]) {
                let target = route.path.replace("{id}", id) + query;
                for told in ["", "9.4.0"] {
                    let response = open(&service, route.method.as_str(), &target, &[("last-event-id", told)]).await;
                    let status = response.status().as_u16();
                    let media = response.headers().get("content-type").map_or("", |media| media.to_str().unwrap());
                    let answer = &document()["paths"][route.path][route.method.as_str().to_lowercase()]["responses"]
                        [status.to_string()];
                    let is_documented = if media.is_empty() {
                        answer["content"] == serde_json::json!({})
                    } else {
                        !answer["content"][media].is_null()
                    };
                    assert!(is_documented, "{setting}: {} {target}: {status} {media}", route.method);
                    seen.insert((route.path, route.method.to_string(), status));
                }
            }
        }
    }
    let documented = ROUTES
        .iter()
        .flat_map(|route| route.answers.iter().map(|answer| (route.path, route.method.to_string(), answer.0)));
    assert_eq!(seen, documented.collect());
}
