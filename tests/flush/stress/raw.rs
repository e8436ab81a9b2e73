use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_offload_tests::Random;

use super::ledger::{Expected, Seen, Sent};
use crate::support::{Connection, Stack, frames};

const STREAMS: usize = 120;

/// Sends several heads per segment: valid, malformed, oversized, and reset at once.
pub(super) async fn play(
    mut io: Box<dyn Connection>,
    connection: usize,
    mut random: Random,
    stack: Stack,
) -> Vec<Sent> {
    let mut ends = frames::Ends::default();
    let mut buffer = vec![0; 64 * 1024];
    let mut asked = Vec::new();
    let mut segment = [frames::PREFACE, &frames::settings(), &frames::wide_window()].concat();
    let mut number = 0;
    while number < STREAMS {
        let mut awaited = Vec::new();
        for _ in 0..=random.below(12) {
            let stream = u32::try_from(number).unwrap() * 2 + 1;
            let size = random.pick(&[1, 100]) * 100 + connection * STREAMS * 2 + number;
            let path = format!("/full/{size}?raw-{connection}-{number}");
            let mut expected = Expected::Complete(size as u64);
            let mut seen = Seen::Whole(size as u64);
            match random.below(10) {
                0..=5 => {
                    segment.extend(frames::get(stream, &path));
                    awaited.push(stream);
                }
                6 | 7 => {
                    segment.extend(frames::malformed(stream));
                    expected = Expected::Refused;
                }
                8 => {
                    segment.extend(frames::get_with_field(stream, &path, 20_000));
                    expected = Expected::Refused;
                }
                _ => {
                    segment.extend([frames::get(stream, &path), frames::reset(stream)].concat());
                    seen = Seen::Cancelled;
                }
            }
            asked.push(Sent { path, expected, seen, stream: (!stack.is_tls()).then_some(stream) });
            number += 1;
        }
        io.write_all(&segment).await.unwrap();
        io.flush().await.unwrap();
        segment.clear();
        while awaited.iter().any(|stream| ends.of(*stream).is_none()) {
            let read = io.read(&mut buffer).await.unwrap();
            assert!(read > 0, "the server has closed the connection, with {awaited:?} open");
            ends.pass(&buffer[..read]);
        }
    }
    asked
}
