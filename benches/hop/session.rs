//! All runs in their order.

use std::time::Instant;

use crate::{
    BoxError,
    bystanders::Usage,
    plan::{Phases, Pin, Plan, Scene},
    platform,
    rows::{Row, Table},
    stage,
    variants::Variant,
};

#[derive(Debug)]
pub(crate) struct Session {
    plan: Plan,
    scenes: Vec<Scene>,
    begin: Instant,
}

impl Session {
    /// Leaves out the scenes that need more cores than there are, and says so.
    pub(crate) fn start(plan: Plan) -> Self {
        let cores = platform::cores().len();
        let scenes = Scene::all().into_iter().filter(|scene| {
            let needed = match scene.pin {
                Pin::Cross => 2,
                Pin::None => 0,
                Pin::One => 1,
            };
            if cores < needed {
                eprintln!(
                    "hop: not measured: {scene}; it needs {needed} core(s) to pin threads to, {cores} can be had"
                );
            }
            cores >= needed
        });
        Self { plan, scenes: scenes.collect(), begin: Instant::now() }
    }

    /// Round by round; in each all scenes, and in a scene all variants one after the other, so that whatever else the
    /// machine does meets all of them alike. Each round begins with another scene and another variant.
    pub(crate) fn measure_all(&self, variants: &[Variant]) -> Result<Vec<Table>, BoxError> {
        let empty = |variant: &Variant| Row { variant: *variant, samples: Vec::new() };
        let tables = self.scenes.iter().map(|scene| Table {
            scene: *scene,
            rows: variants.iter().map(empty).collect(),
            others: Vec::new(),
        });
        let mut tables: Vec<Table> = tables.collect();
        if let Some(phases) = self.plan.rehearsal {
            self.measure_round(&mut tables.clone(), 0, phases)?;
        }
        for round in 1..=self.plan.rounds {
            self.measure_round(&mut tables, round, self.plan.phases)?;
        }
        Ok(tables)
    }

    fn measure_round(&self, tables: &mut [Table], round: usize, phases: Phases) -> Result<(), BoxError> {
        let scenes = tables.len();
        for position in 0..scenes {
            let table = &mut tables[(position + round * scenes / (self.plan.rounds + 1)) % scenes];
            measure_scene(table, round, self.plan.rounds, phases)?;
            eprintln!(
                "[round {round}/{}, {:>2}/{scenes}, {:>3.0} s] {}: others had {:.0} %",
                self.plan.rounds,
                position + 1,
                self.begin.elapsed().as_secs_f64(),
                table.scene,
                table.others.last().copied().unwrap_or(f64::NAN),
            );
        }
        Ok(())
    }
}

fn measure_scene(table: &mut Table, round: usize, rounds: usize, phases: Phases) -> Result<(), BoxError> {
    let before = Usage::now();
    let variants = table.rows.len();
    for position in 0..variants {
        let row = &mut table.rows[(position + round * variants / (rounds + 1)) % variants];
        row.samples.push(stage::run(&row.variant, table.scene, phases)?);
    }
    table.others.extend(before.and_then(|before| Some(Usage::now()?.others_percent_since(before))));
    Ok(())
}
