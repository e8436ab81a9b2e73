use tower_offload_tests::Random;

use super::ledger::{Expected, Seen, Sent};
use crate::support::Http1;

const REQUESTS: usize = 60;

/// Sends requests, some pipelined, until one ends the connection. Resets the connection at a random
/// point.
pub(super) async fn play(mut client: Http1, connection: usize, mut random: Random) -> Vec<Sent> {
    let mut asked = Vec::new();
    let mut number = 0;
    while number < REQUESTS {
        let mut together = Vec::new();
        for _ in 0..=random.below(4) {
            let (path, expected) = request(&mut random, connection * REQUESTS * 2 + number);
            together.push(Sent { path, expected, seen: Seen::Cancelled, stream: None });
            number += 1;
            if expected == Expected::Unending {
                break; // with another request buffered, hyper does not notice that the client has left
            }
        }
        let heads = together.iter().map(|asked| format!("GET {} HTTP/1.1\r\nhost: site\r\n\r\n", asked.path));
        client.send(heads.collect::<String>()).await;
        let mut together = together.into_iter();
        while let Some(mut one) = together.next() {
            if random.one_in(200) || !matches!(one.expected, Expected::Complete(_)) {
                asked.push(one);
                asked.extend(together); // the server may have read them
                return asked;
            }
            one.seen = Seen::Whole(client.answer().await.body);
            asked.push(one);
        }
    }
    asked
}

fn request(random: &mut Random, number: usize) -> (String, Expected) {
    let size = random.pick(&[0, 10, 100]) * 1000 + number;
    let complete = |script: String, size: usize| (script, Expected::Complete(size as u64));
    let (script, expected) = match random.below(100) {
        0..=39 => complete(format!("/full/{size}"), size),
        40..=59 => complete(format!("/chunks/{}/{size}", 1 + number % 4), (1 + number % 4) * size),
        60..=74 => complete(format!("/length/{}/{size}", 1 + number % 4), (1 + number % 4) * size),
        75..=89 => complete(format!("/trailers/{size}"), size),
        90..=94 => complete("/empty".to_owned(), 0),
        95..=96 => complete("/status/204/0".to_owned(), 0),
        97 => (format!("/error/2/{size}"), Expected::BodyError),
        98 => (format!("/short/{}/{size}", size + 1), Expected::TooShort),
        _ => (format!("/hang/{size}"), Expected::Unending),
    };
    (format!("{script}?{number}"), expected)
}
