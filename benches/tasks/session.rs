//! All rounds in their order.

use std::time::Instant;

use crate::{
    BoxError,
    bystanders::Usage,
    plan::{Plan, Store},
    rows::Row,
    stage,
    variants::Variant,
};

/// Round by round, and in each one row after the other, so that whatever else the machine does meets all of them alike. Each round
/// begins with another row. Without a server there are no rows of Postgres.
pub(crate) fn measure_all(plan: Plan, variants: &[Variant], server: Option<&str>) -> Result<Vec<Row>, BoxError> {
    let begin = Instant::now();
    let measurable = variants.iter().filter(|variant| variant.store != Store::Postgres || server.is_some());
    let mut rows: Vec<Row> = measurable.flat_map(rows_of).collect();
    let count = rows.len();
    for round in 0..plan.rounds {
        for position in 0..count {
            let row = &mut rows[(position + round * count / plan.rounds) % count];
            measure(row, plan, server)?;
        }
        eprintln!("[round {}/{}, {:>3.0} s]", round + 1, plan.rounds, begin.elapsed().as_secs_f64());
    }
    Ok(rows)
}

fn rows_of(variant: &Variant) -> Vec<Row> {
    let row = |(measure, clients)| Row { variant: *variant, measure, clients, samples: Vec::new(), others: Vec::new() };
    variant.scenes().into_iter().map(row).collect()
}

fn measure(row: &mut Row, plan: Plan, server: Option<&str>) -> Result<(), BoxError> {
    let before = Usage::now();
    row.samples.push(stage::run(&row.variant, (row.measure, row.clients), plan.phases, server)?);
    row.others.extend(before.and_then(|before| Some(Usage::now()?.others_percent_since(before))));
    Ok(())
}
