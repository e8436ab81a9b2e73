//! The OpenAPI document. It is generated from the routes and the serialized types, so it cannot
//! differ from them.

use serde_json::{Map, Value, json};
use utoipa::{PartialSchema, ToSchema};

use super::{
    list::StatusList,
    operations::{BulkRequest, Release, Released, Reschedule, Sequences},
    response::{self, Response},
    routes::{Content, Operation, ROUTES, Route},
};
use crate::{BulkReport, Status, TaskId, TaskState, Tasks, operation::Queues, problem::Problem, store::Summary};

impl Tasks {
    /// Returns the part of an OpenAPI 3.1 document that describes the status service, to be merged
    /// into the document of the application.
    ///
    /// Its paths begin with the [base path](crate::TasksBuilder::base_path); if that is a URL, each
    /// path names its server. So that names do not clash, those of schemas begin with `Task`, those
    /// of operations with `tasks_`, and each operation has the tag `tasks`. It describes neither
    /// the authentication of the application nor the [alias](crate::StatusAlias).
    ///
    /// ```
    /// use tower_offload_tasks::{MemoryStore, Tasks};
    ///
    /// let mut document = serde_json::json!({"openapi": "3.1.0", "paths": {}, "components": {"schemas": {}}});
    /// let tasks = Tasks::new(MemoryStore::new()).openapi();
    /// for part in ["/paths", "/components/schemas"] {
    ///     let (Some(all), Some(more)) = (document.pointer_mut(part), tasks.pointer(part)) else { continue };
    ///     let more = more.as_object().cloned().unwrap_or_default();
    ///     all.as_object_mut().expect("an object").extend(more);
    /// }
    /// assert!(document.pointer("/paths/~1tasks~1{id}/get").is_some());
    /// ```
    #[cfg_attr(docsrs, doc(cfg(feature = "openapi")))]
    pub fn openapi(&self) -> Value {
        part(self.base_path())
    }
}

const TAG: &str = "tasks";
const SCHEMAS: &str = "#/components/schemas/";

/// Returns the document for merging into another one.
pub(super) fn part(base_path: &str) -> Value {
    let mut document = document("");
    let (server, prefix) = split_origin(base_path);
    rename(&mut document);
    if let Some(schemas) = document.pointer_mut("/components/schemas").and_then(Value::as_object_mut) {
        *schemas = std::mem::take(schemas).into_iter().map(|(name, schema)| (schema_name(&name), schema)).collect();
    }
    let mut paths = Map::new();
    for (path, mut item) in
        document.get_mut("paths").and_then(Value::as_object_mut).map(std::mem::take).unwrap_or_default()
    {
        for operation in item.as_object_mut().into_iter().flat_map(|item| item.values_mut()) {
            operation["operationId"] =
                format!("{TAG}_{}", operation["operationId"].as_str().unwrap_or_default()).into();
            operation["tags"] = json!([TAG]);
        }
        if let Some(server) = server {
            item["servers"] = json!([{"url": server}]);
        }
        // The list is at the base path itself.
        let path = if path == "/" && !prefix.is_empty() { prefix.to_owned() } else { format!("{prefix}{path}") };
        paths.insert(path, item);
    }
    document["paths"] = paths.into();
    if let Some(document) = document.as_object_mut() {
        document.remove("servers"); // those of the application, unless the paths name theirs
    }
    document
}

/// Splits the origin of a URL from its path.
fn split_origin(base_path: &str) -> (Option<&str>, &str) {
    let Some(host) = base_path.find("://").map(|scheme| scheme + 3) else { return (None, base_path) };
    let path = base_path[host..].find('/').map_or(base_path.len(), |path| host + path);
    (Some(&base_path[..path]), &base_path[path..])
}

fn schema_name(name: &str) -> String {
    if name.starts_with("Task") { name.to_owned() } else { format!("Task{name}") }
}

/// Renames the schemas in all references.
fn rename(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let schema = value.as_str().filter(|_| key == "$ref").and_then(|text| text.strip_prefix(SCHEMAS));
                match schema.map(schema_name) {
                    Some(name) => *value = format!("{SCHEMAS}{name}").into(),
                    None => rename(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(rename),
        _ => {}
    }
}

pub(super) fn respond(base_path: &str) -> Response {
    response::json(&document(base_path))
}

pub(super) fn document(base_path: &str) -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_lowercase()] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Tasks", "version": env!("CARGO_PKG_VERSION")},
        "servers": [{"url": if base_path.is_empty() { "/" } else { base_path }}],
        "paths": paths,
        "components": {"schemas": schemas()},
    })
}

fn operation(route: &Route) -> Value {
    let responses = route.responses.iter().map(|(status, description, content)| {
        let headers = headers(route.operation, *status);
        let headers: Map<_, _> = headers.iter().map(|name| (str::to_string(name), header(name))).collect();
        let response = json!({"description": description, "headers": headers, "content": media(*content)});
        (status.to_string(), response)
    });
    let parameters: Vec<_> = route.parameters.iter().map(|name| parameter(name)).collect();
    let mut operation = json!({
        "operationId": format!("{:?}", route.operation).to_lowercase(),
        "summary": route.summary,
        "parameters": parameters,
        "responses": responses.collect::<Map<_, _>>(),
    });
    if let Some(schema) = route.body {
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": reference(schema)}}});
    }
    operation
}

fn parameter(name: &str) -> Value {
    let text = json!({"type": "string"});
    let (location, description, schema) = match name {
        "id" => ("path", "The id of the task.", reference("TaskId")),
        "state" => {
            let schema = json!({"type": "array", "items": reference("TaskState")});
            ("query", "Returns only tasks in one of these states.", schema)
        }
        "name" => ("query", "Returns only tasks of this name.", text),
        "queue" => ("query", "Returns only jobs of this queue.", text),
        "owner" => ("query", "Returns only tasks of this owner.", text),
        "text" => {
            let schema = json!({"type": "string", "maxLength": 200});
            let description = "Returns only tasks with this text in the name, the message or the error, or at the beginning of the id. \
                 A request reads at most 20 000 tasks, so a page may be short although it has `next`.";
            ("query", description, schema)
        }
        "river_id" => {
            ("query", "Returns only the job with this id in the table of the queue.", json!({"type": "integer"}))
        }
        "{name}" => ("path", "The name, with escapes.", text),
        "limit" => {
            let schema = json!({"type": "integer", "minimum": 1, "default": 50});
            ("query", "Page size, 1 to 1000. A larger number is reduced to 1000.", schema)
        }
        "after" => ("query", "Returns the page after the task of this id.", reference("TaskId")),
        "Prefer" => ("header", "`wait=n` waits up to n seconds until the task has finished.", text),
        _ => ("header", "The id of the last event received. The stream resumes after it.", text),
    };
    let mut parameter = json!({
        "name": name.trim_matches(['{', '}']),
        "in": location,
        "required": location == "path",
        "description": description,
        "schema": schema,
    });
    if name == "state" {
        parameter["explode"] = false.into(); // separated by commas
    }
    parameter
}

/// Returns the names of the headers that matter to clients, in responses with this status.
fn headers(operation: Operation, status: u16) -> &'static [&'static str] {
    match (operation, status) {
        (Operation::List, 200) => &["Link"],
        (Operation::Show, 200) => &["Preference-Applied", "Retry-After"],
        (Operation::Retry | Operation::Discard | Operation::Reschedule, 200) => &["Retry-After"],
        (Operation::Cancel, 202) | (_, 503) => &["Retry-After"],
        _ => &[],
    }
}

fn header(name: &str) -> Value {
    let text = json!({"type": "string"});
    let (description, schema) = match name {
        "Link" => ("The next page, with `rel=\"next\"`. Absent on the last page.", text),
        "Preference-Applied" => ("`wait=n`, if the request has waited for the end of the task.", text),
        _ => {
            let schema = json!({"type": "integer", "minimum": 1});
            ("The number of seconds after which to repeat the request. Absent if the state is final.", schema)
        }
    };
    json!({"description": description, "schema": schema})
}

fn media(content: Content) -> Value {
    let json_of = |schema| json!({"application/json": {"schema": schema}});
    match content {
        Content::ListOrPage => {
            let mut media = json_of(reference("StatusList"));
            if cfg!(feature = "page") {
                media["text/html"] = json!({"schema": {"type": "string"}});
            }
            media
        }
        Content::Document => json_of(json!({"type": "object"})),
        Content::Status => json_of(reference("Status")),
        Content::BulkReport => json_of(reference("BulkReport")),
        Content::Summary => json_of(reference("Summary")),
        Content::Queues => json_of(reference("Queues")),
        Content::QueueState => json_of(reference("QueueState")),
        Content::Sequences => json_of(reference("Sequences")),
        Content::Released => json_of(reference("Released")),
        Content::Events => json!({"text/event-stream": {"schema": event()}}),
        Content::Problem => json!({"application/problem+json": {"schema": reference("Problem")}}),
        Content::Nothing => json!({}),
    }
}

/// Returns the schema of one event of a stream. OpenAPI 3.1 has no schema for the stream itself.
fn event() -> Value {
    let status = json!({
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": reference("Status"),
        "description": "The status of the task after the event, as JSON.",
    });
    json!({
        "type": "object",
        "description": "One event of the stream.",
        "properties": {
            "id": {"type": "string", "description": "The value for `Last-Event-ID`."},
            "event": {"type": "string", "enum": ["queued", "started", "progress", "finished"]},
            "data": status,
        },
        "required": ["id", "event", "data"],
    })
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("{SCHEMAS}{schema}")})
}

/// Returns the schemas of the serialized types, including nested ones.
fn schemas() -> Map<String, Value> {
    let mut schemas = Vec::new();
    collect::<Problem>(&mut schemas);
    collect::<Status>(&mut schemas);
    collect::<StatusList>(&mut schemas);
    collect::<BulkRequest>(&mut schemas);
    collect::<BulkReport>(&mut schemas);
    collect::<Queues>(&mut schemas);
    collect::<Release>(&mut schemas);
    collect::<Released>(&mut schemas);
    collect::<Reschedule>(&mut schemas);
    collect::<Sequences>(&mut schemas);
    collect::<Summary>(&mut schemas);
    collect::<TaskId>(&mut schemas);
    collect::<TaskState>(&mut schemas);
    let schemas = schemas.into_iter();
    schemas.map(|(name, schema)| (name, typed(serde_json::to_value(schema).unwrap_or_default()))).collect()
}

/// Names the types of a schema that permits any value. Without a type, `utoipa` cannot read it.
fn typed(mut schema: Value) -> Value {
    if !["type", "$ref", "oneOf", "anyOf", "allOf"].iter().any(|key| schema.get(key).is_some()) {
        schema["type"] = json!(["object", "array", "string", "number", "boolean", "null"]);
    }
    schema
}

type NamedSchema = (String, utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>);

fn collect<T: ToSchema>(schemas: &mut Vec<NamedSchema>) {
    schemas.push((T::name().into_owned(), <T as PartialSchema>::schema()));
    T::schemas(schemas);
}
