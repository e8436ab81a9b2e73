//! Reads connection URLs like libpq, which has rules that sqlx lacks: several hosts, IPv6
//! addresses, `target_session_attrs` and `connect_timeout`. A parameter that has no effect here is
//! an error.

use std::{env, sync::Arc, time::Duration};

use form_urlencoded::Serializer;
use percent_encoding::percent_decode_str;
use sqlx::postgres::{PgConnectOptions, PgPool};

/// The servers that a URL names, in its order.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) servers: Vec<Server>,
    /// Maximum time to connect to each server.
    pub(super) connect_timeout: Duration,
}

#[derive(Debug, Clone)]
pub(super) struct Server {
    /// `host:port`, for messages.
    pub(super) name: Arc<str>,
    options: PgConnectOptions,
    /// A pool of the application whose options replace `options`.
    pool: Option<PgPool>,
}

impl Server {
    /// Returns the options for the next connection. Those of a pool may have changed.
    pub(super) fn options(&self) -> PgConnectOptions {
        self.pool.as_ref().map_or_else(|| self.options.clone(), |pool| (*pool.connect_options()).clone())
    }

    /// Returns `true` if the options may change.
    pub(super) fn has_pool(&self) -> bool {
        self.pool.is_some()
    }
}

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum of `connect_timeout`, so that a caller does not wait for minutes.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_PORT: &str = "5432";
const APPLICATION_NAME: &str = "tower-offload-tasks";

/// Parameters that sqlx reads like libpq. The hyphenated ones are its own.
const PASSED_ON: &[&str] = &[
    "application_name",
    "options",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
];

/// Parameters with values that ask for what happens anyway.
const REDUNDANT: &[(&str, &[&str])] = &[
    ("channel_binding", &["disable", "prefer"]),
    ("client_encoding", &["UTF8", "UTF-8", "utf8", "utf-8", "auto"]),
    ("gssencmode", &["disable", "prefer"]),
    ("load_balance_hosts", &["disable"]),
    // The store writes, so it needs a primary in any case.
    ("target_session_attrs", &["any", "primary", "read-write"]),
];

impl Target {
    /// Returns the server of connect options.
    pub(super) fn of_options(options: PgConnectOptions) -> Self {
        let server = Server { name: name(&options).into(), options, pool: None };
        Self { servers: vec![server], connect_timeout: DEFAULT_CONNECT_TIMEOUT }
    }

    /// Returns the server of a pool.
    pub(super) fn of_pool(pool: PgPool) -> Self {
        let mut target = Self::of_options((*pool.connect_options()).clone());
        target.servers.iter_mut().for_each(|server| server.pool = Some(pool.clone()));
        target
    }

    /// Reads `postgres://[user[:password]@][host[:port],..][/database][?parameter=value&..]`.
    ///
    /// The environment variables of libpq (`PGHOST`, `PGUSER`, ..) apply to what the URL omits.
    ///
    /// # Errors
    ///
    /// Returns a message, which does not contain the password.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let rest = url.split_once("://").map(|(_, rest)| rest).ok_or("the URL must begin with `postgres://`")?;
        let (credentials, rest) = split_credentials(rest);
        if credentials.is_empty() && rest.contains('@') {
            // Does not quote the URL: a `/` in the password hides the `@` behind it.
            return Err(
                "an `@` in the URL does not end the user and the password: write `/` as `%2F` and `@` as `%40`".into(),
            );
        }
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, database) = rest.split_once('/').unwrap_or((rest, ""));
        let mut parts = Parts {
            user: decode("user", user)?,
            password: decode("password", password)?,
            database: decode("database", database)?,
            ..Parts::default()
        };
        for host in hosts.split(',').filter(|_| !hosts.is_empty()) {
            let (host, port) = split_port(host)?;
            parts.hosts.push(decode("host", host)?);
            parts.ports.push(port.to_owned());
        }
        for pair in parameters.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| format!("the parameter `{pair}` has no value"))?;
            parts.parameter(&decode("parameter", name)?, decode(name, value)?)?;
        }
        parts.target()
    }
}

/// Splits `user:password@rest`. Like in libpq, a password may contain `?` and `#`.
fn split_credentials(url: &str) -> (&str, &str) {
    let authority = url.split('/').next().unwrap_or_default();
    let Some(first) = authority.find('@') else { return ("", url) };
    // An `@` within the password is accepted, one within the parameters is not part of it.
    let end = authority[first..].find('?').map_or(authority.len(), |length| first + length);
    let at = authority[..end].rfind('@').unwrap_or(first);
    (&url[..at], &url[at + 1..])
}

fn decode(what: &str, text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(String::from).map_err(|_| format!("the {what} in the URL is not valid UTF-8"))
}

/// Splits `host:port`, where the host may be an IPv6 address in brackets. The port may be missing.
fn split_port(host: &str) -> Result<(&str, &str), String> {
    let invalid = || format!("invalid host {host:?} in the URL: write `host`, `host:port` or `[IPv6 address]:port`");
    if let Some(bracketed) = host.strip_prefix('[') {
        let (host, port) = bracketed.split_once(']').ok_or_else(invalid)?;
        return match port.strip_prefix(':') {
            Some(port) => Ok((host, port)),
            None if port.is_empty() => Ok((host, "")),
            None => Err(invalid()),
        };
    }
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    if port.contains(':') { Err(invalid()) } else { Ok((name, port)) }
}

/// The decoded parts of a URL.
#[derive(Default)]
struct Parts {
    hosts: Vec<String>,
    ports: Vec<String>,
    user: String,
    password: String,
    database: String,
    connect_timeout: Option<Duration>,
    passed_on: Vec<(String, String)>,
}

impl Parts {
    fn parameter(&mut self, name: &str, value: String) -> Result<(), String> {
        let list = |value: &str| value.split(',').map(str::to_owned).collect::<Vec<_>>();
        match name {
            "host" | "hostaddr" => self.hosts = list(&value),
            "port" => self.ports = list(&value),
            "user" => self.user = value,
            "password" => self.password = value,
            "dbname" => self.database = value,
            "connect_timeout" => {
                let seconds =
                    value.parse::<i64>().map_err(|_| format!("invalid `connect_timeout` {value:?} in the URL"))?;
                // Like libpq: zero and negative values mean the default.
                let seconds = u64::try_from(seconds).unwrap_or_default();
                self.connect_timeout = (seconds > 0).then(|| Duration::from_secs(seconds).min(MAX_CONNECT_TIMEOUT));
            }
            "fallback_application_name" => self.passed_on.insert(0, ("application_name".to_owned(), value)),
            _ if PASSED_ON.contains(&name) || name.starts_with("options[") => {
                self.passed_on.push((name.to_owned(), value));
            }
            _ => redundant(name, &value)?,
        }
        Ok(())
    }

    fn target(mut self) -> Result<Target, String> {
        let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
        if let Some(attributes) = variable("PGTARGETSESSIONATTRS") {
            redundant("target_session_attrs", &attributes)?;
        }
        if self.hosts.is_empty() {
            let hosts = variable("PGHOSTADDR").or_else(|| variable("PGHOST")).unwrap_or_default();
            self.hosts = hosts.split(',').map(str::to_owned).collect();
        }
        if self.ports.iter().all(String::is_empty) {
            let ports = variable("PGPORT").unwrap_or_else(|| DEFAULT_PORT.to_owned());
            self.ports = ports.split(',').map(str::to_owned).collect();
        }
        let (hosts, ports) = (self.hosts.len(), self.ports.len());
        if ports != 1 && ports != hosts {
            return Err(format!("the URL has {hosts} hosts and {ports} ports: give one port for all, or one for each"));
        }
        let servers = self.hosts.iter().zip(self.ports.iter().cycle()).map(|(host, port)| self.server(host, port));
        let connect_timeout = self.connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT);
        Ok(Target { servers: servers.collect::<Result<_, _>>()?, connect_timeout })
    }

    /// Lets sqlx read the parts in a URL without an authority, so that it applies its defaults,
    /// `.pgpass` and the environment variables.
    fn server(&self, host: &str, port: &str) -> Result<Server, String> {
        let port = if port.is_empty() { DEFAULT_PORT } else { port };
        if !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(format!("invalid port {port:?} in the URL: use 1 to 65535"));
        }
        let mut query = Serializer::new(String::new());
        query.append_pair("application_name", APPLICATION_NAME).append_pair("port", port);
        for (name, value) in
            [("host", host), ("user", &self.user), ("password", &self.password), ("dbname", &self.database)]
        {
            if !value.is_empty() {
                query.append_pair(name, value);
            }
        }
        query.extend_pairs(&self.passed_on);
        let options: PgConnectOptions =
            format!("postgres:///?{}", query.finish()).parse().map_err(|error: sqlx::Error| error.to_string())?;
        // A proxy may reject the startup parameter `extra_float_digits`, which binary values do not
        // need.
        let options = options.extra_float_digits(None);
        Ok(Server { name: name(&options).into(), options, pool: None })
    }
}

/// Accepts a parameter whose value asks for what happens anyway.
fn redundant(name: &str, value: &str) -> Result<(), String> {
    match REDUNDANT.iter().find(|(known, _)| *known == name) {
        Some((_, values)) if values.contains(&value) => Ok(()),
        Some((_, values)) => {
            Err(format!("`{name}={value}` in the URL is not supported: remove it, or use {}", values.join(", ")))
        }
        None => Err(format!("the parameter `{name}` in the URL is not supported: remove it")),
    }
}

fn name(options: &PgConnectOptions) -> String {
    let (host, port) = (options.get_host(), options.get_port());
    match options.get_socket() {
        Some(socket) => format!("{}:{port}", socket.display()),
        None if host.contains(':') => format!("[{host}]:{port}"),
        None => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use proptest::prelude::*;

    use super::Target;

    /// Returns the names of the servers, and the user, database and options of the first one.
    fn parse(url: &str) -> (Vec<String>, String, Option<String>, Option<String>) {
        let target = Target::parse(url).unwrap();
        let options = &target.servers[0].options();
        let user = options.get_username().to_owned();
        let (database, more) = (options.get_database().map(str::to_owned), options.get_options().map(str::to_owned));
        (target.servers.iter().map(|server| server.name.to_string()).collect(), user, database, more)
    }

    #[test]
    fn urls_are_read_like_libpq_reads_them() {
        for (url, servers, database) in [
            ("postgres://u@h/d", "h:5432", "d"),
            ("postgresql://u:p%40@h:1/d%2Fe", "h:1", "d/e"),
            ("postgres://u:p?#@@h/d", "h:5432", "d"),
            ("postgres://u@[::1]/d", "[::1]:5432", "d"),
            ("postgres://u@[2001:db8::7]:77/d", "[2001:db8::7]:77", "d"),
            ("postgres://u@a,b:2,[::1]:3/d", "a:5432 b:2 [::1]:3", "d"),
            ("postgres:///d?host=a,b&port=7&user=u", "a:7 b:7", "d"),
            ("postgres://u@a:1,b:2?dbname=d@e", "a:1 b:2", "d@e"),
            ("postgres://u@%2Ftmp%2Fpg:9/d", "/tmp/pg:9", "d"),
            ("postgres:///d?host=/tmp/pg&user=u", "/tmp/pg:5432", "d"),
        ] {
            let (names, user, found, _) = parse(url);
            assert_eq!((&*names.join(" "), &*user, found.as_deref()), (servers, "u", Some(database)), "{url}");
        }
    }

    #[test]
    fn parameters_of_the_session_are_passed_on() {
        let (.., options) = parse("postgres://u@h/d?options=-c%20search_path%3Dapp&sslmode=disable&connect_timeout=3");
        assert_eq!(options.as_deref(), Some("-c search_path=app"));
        let target = Target::parse("postgres://u@h/d?connect_timeout=3&application_name=mine").unwrap();
        assert_eq!(target.connect_timeout, Duration::from_secs(3));
        assert_eq!(target.servers[0].options().get_application_name(), Some("mine"));
        let target = Target::parse("postgres://u@h/d?connect_timeout=-1").unwrap();
        assert_eq!(target.connect_timeout, super::DEFAULT_CONNECT_TIMEOUT);
        for supported in ["any", "read-write", "primary"] {
            assert!(Target::parse(&format!("postgres://u@h/d?target_session_attrs={supported}")).is_ok());
        }
    }

    #[test]
    fn what_has_no_effect_is_refused_by_name() {
        for (url, expected) in [
            ("postgres://u:secret@h/d?target_session_attrs=standby", "target_session_attrs=standby"),
            ("postgres://u:secret@h/d?keepalives=1", "`keepalives`"),
            ("postgres://u:secret@h/d?channel_binding=require", "channel_binding=require"),
            ("postgres://u:secret@h/d?sslmode=sometimes", "sometimes"),
            ("postgres://u:secret@h/d?connect_timeout=soon", "soon"),
            ("postgres://u:secret@h/d?flag", "`flag`"),
            ("postgres://u:secret@::1/d", "[IPv6 address]"),
            ("postgres://u:secret@[::1/d", "[IPv6 address]"),
            ("postgres://u:secret@[::1]5432/d", "[IPv6 address]"),
            ("postgres://u:secret@h:port/d", "\"port\""),
            ("postgres://u:secret@h:0/d", "\"0\""),
            ("postgres:///d?host=a,b&port=1,2,3", "2 hosts and 3 ports"),
            ("postgres:secret", "postgres://"),
        ] {
            let error = Target::parse(url).unwrap_err();
            assert!(error.contains(expected) && !error.contains("secret"), "{url}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_target_or_an_error_and_hosts_keep_their_order(
            text in "[a-z:/@?&=,%\\[\\]#0-9]{0,40}",
            hosts in prop::collection::vec("[a-z]{1,8}", 1..5),
        ) {
            let _ = Target::parse(&format!("postgres://{text}"));
            let target = Target::parse(&format!("postgres://u@{}/d", hosts.join(","))).unwrap();
            let names: Vec<_> = target.servers.iter().map(|server| server.name.to_string()).collect();
            prop_assert_eq!(names, hosts.iter().map(|host| format!("{host}:5432")).collect::<Vec<_>>());
        }
    }
}
