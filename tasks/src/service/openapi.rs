//! The OpenAPI document, of the same table that requests are matched with and the types that are served.

use serde_json::{Map, Value, json};
use utoipa::{PartialSchema, ToSchema};

use super::{
    list::StatusList,
    problem::Problem,
    respond::{self, Answer},
    routes::{Content, ROUTES, Route},
};
use crate::{Status, TaskId, TaskState};

pub(super) fn answer() -> Answer {
    respond::json(&document())
}

pub(super) fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_lowercase()] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Tasks", "version": env!("CARGO_PKG_VERSION")},
        "servers": [{"url": "."}], // relative to this document, wherever the service is mounted
        "paths": paths,
        "components": {"schemas": schemas()},
    })
}

fn operation(route: &Route) -> Value {
    let answers = route.answers.iter().map(|(status, description, content)| {
        (status.to_string(), json!({"description": description, "content": media(*content)}))
    });
    let parameters: Vec<_> = route.parameters.iter().map(|name| parameter(name)).collect();
    json!({
        "operationId": format!("{:?}", route.operation).to_lowercase(),
        "summary": route.summary,
        "parameters": parameters,
        "responses": answers.collect::<Map<_, _>>(),
    })
}

fn parameter(name: &str) -> Value {
    let text = json!({"type": "string"});
    let (place, description, schema) = match name {
        "id" => ("path", "Of the task.", reference("TaskId")),
        "state" => {
            ("query", "Only tasks in one of these states.", json!({"type": "array", "items": reference("TaskState")}))
        }
        "name" => ("query", "Only tasks of this name.", text),
        "limit" => (
            "query",
            "At most so many; more than 1000 are never told.",
            json!({"type": "integer", "minimum": 1, "default": 50}),
        ),
        "after" => ("query", "What comes behind the task of this id.", reference("TaskId")),
        "Prefer" => ("header", "`wait=n`: to wait for the end of the task, n seconds at most.", text),
        _ => ("header", "The last event that was received: the stream goes on behind it.", text),
    };
    let mut parameter =
        json!({"name": name, "in": place, "required": place == "path", "description": description, "schema": schema});
    if name == "state" {
        parameter["explode"] = false.into(); // with commas between
    }
    parameter
}

fn media(content: Content) -> Value {
    let json_of = |schema| json!({"application/json": {"schema": schema}});
    match content {
        Content::Document => json_of(json!({"type": "object"})),
        Content::Events => json!({"text/event-stream": {"schema": {"type": "string"}}}),
        Content::ListOrPage => json!({
            "application/json": {"schema": reference("StatusList")},
            "text/html": {"schema": {"type": "string"}},
        }),
        Content::Nothing => json!({}),
        Content::Problem => json!({"application/problem+json": {"schema": reference("Problem")}}),
        Content::Status => json_of(reference("Status")),
    }
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

/// Of the types that are served and of all that is in them.
fn schemas() -> Map<String, Value> {
    let mut schemas = Vec::new();
    collect::<Problem>(&mut schemas);
    collect::<Status>(&mut schemas);
    collect::<StatusList>(&mut schemas);
    collect::<TaskId>(&mut schemas);
    collect::<TaskState>(&mut schemas);
    let schemas = schemas.into_iter();
    schemas.map(|(name, schema)| (name, serde_json::to_value(schema).unwrap_or_default())).collect()
}

type Named = (String, utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>);

fn collect<T: ToSchema>(schemas: &mut Vec<Named>) {
    schemas.push((T::name().into_owned(), <T as PartialSchema>::schema()));
    T::schemas(schemas);
}
