//! A tower service that has nothing to do with HTTP: `cargo run --example tower`.

use std::{error::Error, thread, time::Duration};

use tower::{Service, ServiceBuilder, ServiceExt};
use tower_offload::{
    CallError, OffloadLayer, ThreadPool,
    offload::{Typed, cancelled, sync_fn},
    pool::Pool,
};

/// How many primes there are below a limit, found the slow way.
fn count_primes(below: u64) -> Result<usize, String> {
    if below > 100_000_000 {
        return Err(format!("{below} is too much"));
    }
    let is_prime =
        |&number: &u64| (2..).take_while(|factor| factor * factor <= number).all(|factor| number % factor > 0);
    // A caller that has left wants no result: ask from time to time.
    let found = (2..below).take_while(|number| number % 4096 > 0 || !cancelled()).filter(is_prime).count();
    println!("counted on {}", thread::current().name().unwrap_or("a thread without a name"));
    Ok(found)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let pool = ThreadPool::builder().name("numbers").build()?;
    let mut primes = ServiceBuilder::new()
        .layer(OffloadLayer::new(pool.clone()).max_in_flight(1).reject(Typed)) // a refusal is an error here
        .service(sync_fn(count_primes));

    println!("below 1000: {}", primes.ready().await?.call(1000).await?);

    // The service's own errors and refusals arrive in the same box, and can be told apart.
    let error = primes.ready().await?.call(u64::MAX).await.expect_err("over the limit");
    println!("its own error: {error}, a refusal: {}", error.is::<CallError>());

    // One place in the layer: while the first call has it, the second is refused at once.
    let first = primes.ready().await?.call(1_000_000);
    let error = primes.ready().await?.call(10).await.expect_err("no place left");
    println!("meanwhile: {error} ({:?})", error.downcast_ref::<CallError>());
    println!("below 1000000: {}", first.await?);

    let left = pool.shutdown(Duration::from_secs(5)).await;
    println!("all done: {}", left.is_empty());
    Ok(())
}
