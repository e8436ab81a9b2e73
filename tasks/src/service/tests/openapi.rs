use std::collections::BTreeSet;

use tower::ServiceExt;

use super::controlled::{Controlled, get, request};
use crate::{
    OperationError, StoreError, TaskId,
    service::{
        Access,
        openapi::{document, part},
        routes::ROUTES,
    },
};

#[tokio::test]
async fn every_reference_in_the_document_resolves() {
    let reply = get(&Controlled::new().await.default_service(), "/openapi.json").await;
    assert_eq!(reply.header("content-type"), "application/json");
    let document = reply.json();
    assert_eq!(document["openapi"], "3.1.0");
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(references.len() > 10);
    for reference in references {
        assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
    }
    assert_eq!(document["servers"][0]["url"], "/tasks");
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

const RESCHEDULE: &str = r#"{"due_at":"2026-03-01T12:30:00Z"}"#;
const BULK: &str = r#"{"action":"retry","filter":{}}"#;
const RELEASE: &str = r#"{"key":"a"}"#;
/// The document of an application, with a schema and an operation of names that this crate uses.
const APPLICATION: &str = r##"{
    "openapi": "3.1.0", "info": {"title": "Shop", "version": "1"},
    "paths": {"/": {"get": {"operationId": "list", "responses": {"200": {"description": "Orders.", "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/Status"}}}}}}}},
    "components": {"schemas": {"Status": {"type": "string"}}}
}"##;

#[test]
fn part_is_merged_into_the_document_of_an_application() {
    let mut merged: utoipa::openapi::OpenApi = serde_json::from_str(APPLICATION).unwrap();
    merged.merge(serde_json::from_value(part("/api/tasks")).unwrap());
    let merged = serde_json::to_value(merged).unwrap();
    assert_eq!((&merged["info"]["title"], &merged["servers"]), (&"Shop".into(), &serde_json::Value::Null));
    assert_eq!(merged["components"]["schemas"]["Status"]["type"], "string", "that of the application");
    assert_eq!(merged["paths"]["/"]["get"]["operationId"], "list");
    for route in ROUTES {
        let path = if route.path == "/" { "/api/tasks".to_owned() } else { format!("/api/tasks{}", route.path) };
        let operation = &merged["paths"][path][route.method.as_str().to_lowercase()];
        assert_eq!(operation["tags"], serde_json::json!(["tasks"]), "{}", route.path);
        assert!(operation["operationId"].as_str().unwrap().starts_with("tasks_"));
    }
    let mut references = Vec::new();
    collect(&merged, &mut references);
    assert!(references.len() > 10);
    for reference in references {
        assert!(merged.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
    }
}

#[test]
fn paths_below_a_url_name_their_server() {
    let below = part("https://tasks.example/v1");
    assert_eq!(below["paths"]["/v1/{id}"]["servers"], serde_json::json!([{"url": "https://tasks.example"}]));
    assert!(below["paths"]["/v1"]["get"].is_object());
    assert_eq!(part("https://tasks.example")["paths"]["/"]["servers"], below["paths"]["/v1"]["servers"]);
    let root = part("");
    assert!(root["paths"]["/"]["get"].is_object() && root["paths"]["/{id}"]["servers"].is_null());
}

/// Provokes every documented response, and no other.
#[tokio::test]
async fn documented_responses_are_exactly_the_actual_ones() {
    let (mut seen, mut seen_headers) = (BTreeSet::new(), BTreeSet::new());
    let settings = ["open", "denied", "closed", "no streams", "unavailable", "broken"];
    for setting in settings.into_iter().chain(["no queue", "wrong state", "unknown name", "busy"]) {
        let tasks = Controlled::new().await;
        let (queued, running) = (tasks.accept("a").await, tasks.accept("a").await);
        let (done, evicted) = (tasks.accept("a").await, tasks.accept("a").await);
        for id in [running, evicted] {
            tasks.start(id).await;
        }
        tasks.succeed(evicted).await;
        tasks.evict_all_final().await;
        tasks.start(done).await;
        tasks.succeed(done).await;
        let service = match setting {
            "denied" => tasks.service().authorize(|_, _| Access::Denied),
            "no streams" => tasks.service().max_streams(0),
            _ => tasks.service(),
        };
        match setting {
            "closed" => tasks.close(),
            "unavailable" => tasks.fail_with(|| StoreError::unavailable("")),
            "broken" => tasks.fail_with(|| StoreError::other("")),
            "no queue" => tasks.refuse_with(OperationError::no_queue),
            "wrong state" => tasks.refuse_with(OperationError::duplicate),
            "unknown name" => tasks.refuse_with(|| OperationError::unknown_name("")),
            _ => {}
        }
        let permit = (setting == "busy").then(|| service.config.limits.try_acquire_bulk(&Access::All).unwrap());
        for route in ROUTES {
            // Refusals of other operations, which these do not have.
            let is_job = route.path.contains("{id}");
            let is_refused = match setting {
                "wrong state" => is_job || route.path == "/kinds/{name}/pause",
                "unknown name" => is_job || route.path.contains("{name}"),
                _ => true,
            };
            if !is_refused {
                continue;
            }
            let ids = [queued.to_string(), running.to_string(), done.to_string(), evicted.to_string(), "x".to_owned()];
            let ids = if is_job { &ids[..] } else { &ids[..1] };
            for (id, query) in ids.iter().flat_map(|id| [(id, ""), (id, "?limit=x"), (id, "?limit=1")]) {
                let target = route.path.replace("{id}", id).replace("{name}", "a") + query;
                let last = [("", ""), ("1.4.99", "")];
                let large = "x".repeat(70_000);
                let bodies = ["{}", RESCHEDULE, BULK, RELEASE, &large].map(|body| ("", body));
                let bodies = if route.body.is_some() { &bodies[..] } else { &bodies[..1] };
                for (last, body) in last.iter().chain(bodies) {
                    let mut headers = vec![("last-event-id", *last), ("prefer", "wait=0")];
                    headers.extend((!body.is_empty()).then_some(("content-type", "application/json")));
                    let request = request(route.method.as_str(), &target, &headers).map(|_| (*body).to_owned());
                    let response = service.clone().oneshot(request).await.unwrap();
                    let status = response.status().as_u16();
                    let media = response.headers().get("content-type").map_or("", |media| media.to_str().unwrap());
                    let documented = &document("/tasks")["paths"][route.path][route.method.as_str().to_lowercase()]["responses"]
                        [status.to_string()];
                    let is_documented = if media.is_empty() {
                        documented["content"] == serde_json::json!({})
                    } else {
                        !documented["content"][media].is_null()
                    };
                    assert!(is_documented, "{setting}: {} {target}: {status} {media}", route.method);
                    for name in ["Link", "Preference-Applied", "Retry-After"] {
                        let is_documented = !documented["headers"][name].is_null();
                        assert!(is_documented || !response.headers().contains_key(name), "{target}: {status} {name}");
                        seen_headers.extend(response.headers().contains_key(name).then_some(name));
                    }
                    seen.insert((route.path, route.method.to_string(), status));
                }
            }
        }
        drop(permit);
    }
    let documented = ROUTES
        .iter()
        .flat_map(|route| route.responses.iter().map(|response| (route.path, route.method.to_string(), response.0)));
    assert_eq!(seen, documented.collect());
    assert_eq!(seen_headers.len(), 3);
}

#[test]
fn document_does_not_show_how_the_program_is_written() {
    let text = document("").to_string();
    for word in ["::", "```", "[`", "`]", "Box<", "Rust", "std", "crate", "impl", "Option", "Err(", "&str", "clippy"] {
        assert!(!text.contains(word), "{word}: {text}");
    }
    let mut descriptions = Vec::new();
    collect_descriptions(&document(""), &mut descriptions);
    for description in &descriptions {
        assert!(description.len() > 5 && description.ends_with('.'), "{description:?}");
    }
    assert!(descriptions.len() > 30);
}

fn collect_descriptions(value: &serde_json::Value, descriptions: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            descriptions.extend(fields.get("description").and_then(|text| text.as_str()).map(str::to_owned));
            fields.values().for_each(|value| collect_descriptions(value, descriptions));
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| collect_descriptions(value, descriptions)),
        _ => {}
    }
}

/// The pattern is `^[a][b]{n}$` with two character classes.
#[test]
fn pattern_of_ids_matches_exactly_the_valid_ones() {
    let document = document("");
    let schema = &document["components"]["schemas"]["TaskId"];
    let pattern = schema["pattern"].as_str().unwrap();
    let (first, rest) = pattern.strip_prefix("^[").unwrap().split_once("][").unwrap();
    let (rest, count) = rest.split_once("]{").unwrap();
    let length: usize = count.strip_suffix("}$").unwrap().parse().unwrap();
    let matches = |class: &str, character: char| {
        let mut class: Vec<char> = class.chars().rev().collect();
        std::iter::from_fn(|| {
            let first = class.pop()?;
            let last = if class.last() == Some(&'-') { class.pop().and(class.pop())? } else { first };
            Some((first..=last).contains(&character))
        })
        .any(|is_match| is_match)
    };
    for character in (0..=127_u8).map(char::from) {
        let first_differs = format!("{character}{}", "0".repeat(length));
        let last_differs = format!("{}{character}", "0".repeat(length));
        assert_eq!(matches(first, character), first_differs.parse::<TaskId>().is_ok(), "{first_differs}");
        assert_eq!(matches(rest, character), last_differs.parse::<TaskId>().is_ok(), "{last_differs}");
    }
    assert!(schema["example"].as_str().unwrap().parse::<TaskId>().is_ok());
}
