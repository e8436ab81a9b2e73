use bytes::Bytes;
use h2::{SendStream, client::ResponseFuture};
use http::Method;
use tokio::task::JoinSet;
use tower_offload_tests::Random;

use super::ledger::{Expected, Seen, Sent};
use crate::support::{Http2, Stack, read};

const REQUESTS: usize = 120;
const IN_FLIGHT: usize = 40;

/// How a client treats a response.
#[derive(Clone, Copy)]
enum Manner {
    /// Drops the response at once.
    Drop,
    /// Drops the response after its head.
    DropAfterHead,
    /// Drops the response after some of its data.
    DropAfterData,
    Read,
}

/// Sends requests of all kinds, many concurrently, and closes the connection at the end or before
/// it. A patient client reads every response that ends.
pub(super) async fn play(
    mut client: Http2,
    connection: usize,
    mut random: Random,
    stack: Stack,
    is_patient: bool,
) -> Vec<Sent> {
    let hangs_up = random.one_in(3);
    let mut responses = JoinSet::new();
    let mut asked = Vec::new();
    for number in 0..REQUESTS {
        let (path, expected) = request(&mut random, connection * REQUESTS + number, stack);
        let (response, _body) = send(&mut client, &path, &mut random).await;
        let stream = (!stack.is_tls()).then(|| response.stream_id().as_u32());
        let manner = if is_patient && expected != Expected::Unending {
            Manner::Read
        } else if expected == Expected::Unending {
            random.pick(&[Manner::Drop, Manner::DropAfterHead, Manner::DropAfterData])
        } else {
            random.pick(&[
                Manner::Read,
                Manner::Read,
                Manner::Read,
                Manner::Read,
                Manner::Drop,
                Manner::DropAfterHead,
                Manner::DropAfterData,
            ])
        };
        responses.spawn(async move {
            let seen = receive(response, manner).await;
            Sent { path, expected, seen, stream }
        });
        if responses.len() == IN_FLIGHT {
            asked.push(responses.join_next().await.unwrap().unwrap());
        }
        if random.one_in(20) {
            tokio::task::yield_now().await;
        }
    }
    if hangs_up {
        client.hang_up().await;
        while let Some(response) = responses.join_next().await {
            asked.push(response.unwrap());
        }
        asked.iter_mut().for_each(|asked| asked.seen = asked.seen.and_gone());
    } else {
        while let Some(response) = responses.join_next().await {
            asked.push(response.unwrap());
        }
        client.hang_up().await;
    }
    asked
}

/// Returns a unique path, usually with a unique length.
fn request(random: &mut Random, number: usize, stack: Stack) -> (String, Expected) {
    let size = random.pick(&[0, 10, 100]) * 1000 + number;
    let complete = |script: String, size: usize| (script, Expected::Complete(size as u64));
    let (script, expected) = match random.below(20) {
        0..=6 => complete(format!("/full/{size}"), size),
        7..=9 => complete(format!("/chunks/{}/{size}", 1 + number % 4), (1 + number % 4) * size),
        10..=12 => complete(format!("/trailers/{size}"), size),
        13 => complete("/empty".to_owned(), 0),
        14 => complete("/status/204/0".to_owned(), 0),
        15 => (format!("/error/{}/{size}", number % 3), Expected::BodyError),
        16 => (format!("/short/{}/{size}", size + 1), Expected::TooShort),
        17 => (format!("/hang/{size}"), Expected::Unending),
        18 if !stack.is_axum() => ("/fail".to_owned(), Expected::HandlerError),
        _ => complete(format!("/full/{size}"), size),
    };
    (format!("{script}?{number}"), expected)
}

async fn send(client: &mut Http2, path: &str, random: &mut Random) -> (ResponseFuture, SendStream<Bytes>) {
    let is_post = random.one_in(4);
    let method = if is_post { Method::POST } else { Method::GET };
    let (response, mut body) = client.request(method, path, !is_post).await;
    if is_post {
        // The connection may have closed.
        let _ = body.send_data(Bytes::from(vec![b'q'; random.below(3000)]), true);
    }
    (response, body)
}

async fn receive(response: ResponseFuture, manner: Manner) -> Seen {
    match manner {
        Manner::Drop => Seen::Cancelled,
        Manner::DropAfterHead => {
            let _ = response.await;
            Seen::Cancelled
        }
        Manner::DropAfterData => {
            if let Ok(response) = response.await {
                let _ = response.into_body().data().await;
            }
            Seen::Cancelled
        }
        Manner::Read => read(response).await.map_or(Seen::Failed, |read| Seen::Whole(read.body)),
    }
}
