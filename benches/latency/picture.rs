//! The latency curves of `/ping` as an SVG: a panel for each load, a curve for each variant.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    BoxError,
    plan::{JOB, LOADS, PING_RATE},
    report,
    rows::Row,
    session::Conditions,
};

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const PANEL: (u32, u32) = (1000, 470);
const HEADING: u32 = 56;
/// Right of each plot, for the names of its curves.
const LABELS: u32 = 372;
const LINE_HEIGHT: i32 = 25;
const FONT: &str = "sans-serif";
const GREY: RGBColor = RGBColor(90, 90, 90);

/// Where they are from left to right, in thousandths of a nine: ten times as rare is 1000 further.
const PERCENTILES: [(i32, &str); 4] = [(301, "50 %"), (1000, "90 %"), (2000, "99 %"), (LAST, "99.9 %")];
const LAST: i32 = 3000;

/// `latency.svg` in cargo's target directory.
pub(crate) fn default_path() -> PathBuf {
    let of_executable = || {
        let executable = env::current_exe().ok()?;
        executable.ancestors().find(|path| path.ends_with("target")).map(Path::to_path_buf)
    };
    let directory = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).or_else(of_executable);
    directory.unwrap_or_else(|| PathBuf::from("target")).join("latency.svg")
}

pub(crate) fn draw(path: &Path, rows: &[Row], conditions: &Conditions) -> Result<(), BoxError> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let panels = u32::try_from(LOADS.len())?;
    let canvas = SVGBackend::new(path, (PANEL.0, PANEL.1 * panels + HEADING)).into_drawing_area();
    canvas.fill(&WHITE)?;
    let title = format!(
        "Latency of /ping, {PING_RATE:.0} a second, beside {} ms CPU jobs ({})",
        JOB.as_millis(),
        conditions.plan.jobs
    );
    canvas.draw(&Text::new(title, (24, 18), (FONT, 32).into_font()))?;
    let (_, plots) = canvas.split_vertically(HEADING);
    let heights = heights(rows);
    for (panel, load) in plots.split_evenly((LOADS.len(), 1)).iter().zip(LOADS) {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.load == load).collect();
        draw_panel(panel, load, &rows, heights.clone())?;
    }
    canvas.present()?;
    Ok(())
}

fn draw_panel(panel: &Canvas<'_>, load: u32, rows: &[&Row], heights: std::ops::Range<f64>) -> Result<(), BoxError> {
    let powers: Vec<f64> = (-3..7).map(|power| 10_f64.powi(power)).filter(|it| heights.contains(it)).collect();
    let mut chart = ChartBuilder::on(panel)
        .caption(format!("jobs at {load} % of capacity"), (FONT, 25))
        .margin_left(14)
        .margin_right(LABELS)
        .margin_bottom(10)
        .x_label_area_size(62)
        .y_label_area_size(86)
        .build_cartesian_2d(
            (0..LAST).with_key_points(PERCENTILES.iter().map(|(place, _)| *place).collect()),
            heights.log_scale().with_key_points(powers),
        )?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.18))
        .x_labels(PERCENTILES.len())
        .x_label_formatter(&|place| percentile_name(*place))
        .x_label_style((FONT, 21))
        .y_label_formatter(&|milliseconds| milliseconds.to_string())
        .y_label_style((FONT, 21))
        .x_desc("percentile of the requests")
        .y_desc("ms, log scale")
        .axis_desc_style((FONT, 21))
        .draw()?;

    let mut ends = Vec::new();
    for row in rows {
        let curve = (0..=LAST).step_by(10).map(|place| (place, milliseconds_at(row, place)));
        chart.draw_series(LineSeries::new(curve, colour(row).stroke_width(3)))?;
        let end = chart.backend_coord(&(LAST, milliseconds_at(row, LAST)));
        ends.push((end, *row));
    }
    let (_, top) = panel.get_base_pixel();
    let plot = chart.plotting_area().get_pixel_range().1;
    draw_names(panel, ends, plot.start - top..plot.end - top)
}

/// Names each curve beside its end, moved apart where the ends are close, and says its p99.
fn draw_names(
    panel: &Canvas<'_>,
    mut ends: Vec<((i32, i32), &Row)>,
    heights: std::ops::Range<i32>,
) -> Result<(), BoxError> {
    ends.sort_by_key(|((_, y), _)| *y);
    let (left, top) = panel.get_base_pixel();
    let wanted: Vec<i32> = ends.iter().map(|((_, y), _)| y - top).collect();
    let places = apart(&wanted, LINE_HEIGHT, heights);
    for (((x, y), row), place) in ends.iter().zip(places) {
        let (colour, x) = (colour(row), x - left);
        let leader = vec![(x + 3, y - top), (x + 22, place), (x + 40, place)];
        panel.draw(&PathElement::new(leader, colour.stroke_width(2)))?;
        let doubt = if row.is_reliable() { "" } else { " !" };
        let style = TextStyle::from((FONT, 21).into_font()).pos(Pos::new(HPos::Left, VPos::Center));
        panel.draw(&Text::new(row.variant.name, (x + 46, place), style.color(&BLACK)))?;
        let p99 = format!("p99 {} ms{doubt}", report::number(row.ping_at(0.99).median));
        let right = i32::try_from(LABELS)? + x - 10;
        let style = style.pos(Pos::new(HPos::Right, VPos::Center));
        panel.draw(&Text::new(p99, (right, place), style.color(&GREY)))?;
    }
    Ok(())
}

/// Places in ascending order, each as near to where it is wanted as the others and the bounds allow.
fn apart(wanted: &[i32], distance: i32, bounds: std::ops::Range<i32>) -> Vec<i32> {
    let mut places = Vec::with_capacity(wanted.len());
    let mut lowest = bounds.start;
    for place in wanted {
        let place = lowest.max(*place);
        places.push(place);
        lowest = place + distance;
    }
    let mut highest = bounds.end;
    for place in places.iter_mut().rev() {
        *place = highest.min(*place);
        highest = *place - distance;
    }
    places
}

/// Of each percentile the median of the rounds, as in the table.
fn milliseconds_at(row: &Row, place: i32) -> f64 {
    row.ping_at(1.0 - 10_f64.powf(-f64::from(place) / 1e3)).median.max(1e-3)
}

/// The same for all panels, so that they compare: from just under the fastest to just over the slowest.
fn heights(rows: &[Row]) -> std::ops::Range<f64> {
    let lowest = rows.iter().map(|it| milliseconds_at(it, 0)).fold(f64::INFINITY, f64::min);
    let highest = rows.iter().map(|it| milliseconds_at(it, LAST)).fold(0.0, f64::max);
    lowest * 0.8..highest * 1.5
}

fn percentile_name(place: i32) -> String {
    let named = PERCENTILES.iter().find(|(it, _)| *it == place);
    named.map_or_else(String::new, |(_, name)| (*name).to_owned())
}

fn colour(row: &Row) -> RGBColor {
    let [red, green, blue] = row.variant.colour;
    RGBColor(red, green, blue)
}
