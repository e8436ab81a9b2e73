//! The wait of the quiet tenant as an SVG picture.

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{ALONE, FIFO, GROUPS, KEYS, MAX_MOVED, Row, moved_by};
use crate::{
    BoxError, Picture, Spread, find, number,
    picture::{FONT, GREY, TITLE_HEIGHT, WIDTH},
};

/// The space to the left of each plot, which holds the names of the variants.
const NAME_WIDTH: i32 = 110;
/// The space to the right of each plot, which holds the figures.
const NOTE_WIDTH: i32 = 450;
const ROW_HEIGHT: u32 = 44;
/// The title and the axis of a panel.
const PANEL_MARGIN: u32 = 110;

/// Draws a panel for each scene.
pub(super) fn of(rows: &[Row]) -> Result<Picture, BoxError> {
    let panels: Vec<&[Row]> = rows.chunk_by(|a, b| a.scene == b.scene).collect();
    let waits = rows.iter().flat_map(|row| [row.spread(|it| it.p50), row.spread(|it| it.p99)]).flatten();
    let highest = waits.fold(10.0_f64, |highest, wait| highest.max(wait.max));
    let heights = panels.iter().map(|rows| PANEL_MARGIN + ROW_HEIGHT * rows.len() as u32);
    let title = "How long a call of the quiet tenant takes";
    let mut svg = String::new();
    {
        let height = TITLE_HEIGHT + heights.clone().sum::<u32>();
        let canvas = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        canvas.fill(&WHITE)?;
        canvas.draw(&Text::new(title, (24, 18), (FONT.0, 28).into_font()))?;
        let (_, mut rest) = canvas.split_vertically(TITLE_HEIGHT);
        for (rows, height) in panels.iter().zip(heights) {
            let (area, below) = rest.split_vertically(height);
            draw(&area, rows, highest * 1.3)?;
            rest = below;
        }
        canvas.present()?;
    }
    let caption = format!(
        "{title}, in service times, logarithmic: a line from half of the calls (ring) to 99 of 100 (dot). Grey: at most \
         {MAX_MOVED} service time more than alone."
    );
    Ok(Picture { name: "fairness.svg", caption, svg })
}

fn draw(area: &DrawingArea<SVGBackend<'_>, Shift>, rows: &[Row], highest: f64) -> Result<(), BoxError> {
    const LOWEST: f64 = 0.8;
    let count = rows.len() as f64;
    let powers = (0..7).map(|power| 10_f64.powi(power)).filter(|it| *it < highest).collect();
    let mut chart = ChartBuilder::on(area)
        .caption(rows[0].scene.to_string(), (FONT.0, 25))
        .margin_left(NAME_WIDTH)
        .margin_right(NOTE_WIDTH)
        .margin_bottom(8)
        .x_label_area_size(62)
        .build_cartesian_2d((LOWEST..highest).log_scale().with_key_points(powers), 0.0..count)?;
    if let Some(alone) = find(rows, |_| true, ALONE).and_then(|row| row.spread(|it| it.p99)) {
        let corners = [(LOWEST, 0.0), ((alone.median + MAX_MOVED).min(highest), count)];
        chart.draw_series([Rectangle::new(corners, BLACK.mix(0.08).filled())])?;
    }
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.18))
        .x_label_formatter(&|wait| wait.to_string())
        .x_label_style(FONT)
        .x_desc("service times, log scale")
        .axis_desc_style(FONT)
        .draw()?;
    let (left, top) = area.get_base_pixel();
    let right = chart.plotting_area().get_pixel_range().0.end - left;
    for (index, row) in rows.iter().enumerate() {
        let height = count - 0.5 - index as f64;
        let median = |wait: Option<Spread>| wait.map(|it| it.median.max(LOWEST));
        let points = [row.spread(|it| it.p50), row.spread(|it| it.p99)].map(median);
        let colour = colour(&row.variant);
        if let [Some(p50), Some(p99)] = points {
            chart.draw_series(LineSeries::new([(p50, height), (p99, height)], colour.stroke_width(4)))?;
            chart.draw_series([Circle::new((p50, height), 6, WHITE.filled())])?;
            chart.draw_series([Circle::new((p50, height), 6, colour.stroke_width(3))])?;
            chart.draw_series([Circle::new((p99, height), 7, colour.filled())])?;
        }
        let y = chart.backend_coord(&(1.0, height)).1 - top;
        let style = TextStyle::from(FONT.into_font()).pos(Pos::new(HPos::Right, VPos::Center));
        area.draw(&Text::new(row.variant.as_str(), (NAME_WIDTH - 12, y), style.color(&BLACK)))?;
        let style = style.pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(note(rows, row), (right + 16, y), style.color(&GREY)))?;
    }
    Ok(())
}

/// Returns the figures beside a line.
fn note(rows: &[Row], row: &Row) -> String {
    let rejected = row.spread(|it| it.rejected_pct).map_or(0.0, |it| it.median);
    let rejected = if rejected > 0.0 { format!(", {} % rejected", number(rejected)) } else { String::new() };
    match (row.spread(|it| it.p99), moved_by(rows, row)) {
        (None, _) => format!("no call answered{rejected}"),
        (Some(p99), Some(moved)) if row.variant != ALONE => {
            format!("p99 {}, moved by {}{rejected}", number(p99.median), number(moved.median))
        }
        (Some(p99), _) => format!("p99 {}{rejected}", number(p99.median)),
    }
}

/// Colours for colour-blind readers (Okabe and Ito).
fn colour(variant: &str) -> RGBColor {
    match variant {
        ALONE => BLACK,
        FIFO => RGBColor(213, 94, 0),
        KEYS => RGBColor(0, 114, 178),
        GROUPS => RGBColor(0, 158, 115),
        _ => RGBColor(204, 121, 167),
    }
}
