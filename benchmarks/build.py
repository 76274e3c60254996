"""A whole build as its users run it: a pool of math rows in five languages with planted faults, and what each stage costs.

    python benchmarks/build.py --rows 30000                    # seconds, CPU, memory, what of the planted faults was dropped
    python benchmarks/build.py --rows 1000000 --part-rows 50000 --executor processes --workers 2
    GLOTLOOM_DATA=... python benchmarks/build.py --real        # English rows and evaluation items that nobody here wrote
    python benchmarks/build.py --compare before,tree=../before now "now x2,executor=processes,workers=2" --rows 100000
    python benchmarks/build.py --teacher                       # three languages ask a loopback teacher of 64 slots; ~3 minutes
    python benchmarks/build.py --report                        # only print what was measured

The product is driven through its command line alone, in a process of its own with PYTHONPATH set to the tree under test, so that
any commit that `git worktree add` has checked out can stand beside another under the same interpreter. A variant is NAME followed
by any of tree=DIR, executor=inline|processes|ray, workers=N, ray_address=A, part_rows=N and equal=GROUP, after commas; what a
variant does not say, the options of the same names say for all. Variants of one GROUP (the commit unless given) have to publish
the same bytes.

The pool stands language after language: 70 % of the rows are English and 7.5 % are in each of fr, es, ru and zh, all of which are
translations of English rows. With `--real` English rows without translations are GSM8K's, two problems a row once each has stood
alone, so that rows of a large pool are longer. Planted are exact and near copies, translations of rows that name a person and a
place, translations with a changed number, rows that hold a whole evaluation item, and answers in another language (`SHARES`). A
copy counts as found when it or its original is dropped for that reason. Each variant is built three times: in a fresh folder;
again, with everything finished; and again with another budget, so that only the last stage is made.

Processor time is user and system of the command and of every process below it (RUSAGE_CHILDREN; what is left behind, as Ray's
daemons are, is waited for). Memory is the greatest sum of their PSS, sampled every 0.2 s: shared pages count once. Of a cluster
elsewhere (`--ray-address`) neither is seen. What was measured is kept: without `--again` a variant of the same commit is not
measured twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import hashlib
import itertools
import json
import multiprocessing
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

LANGUAGES = ("en", "fr", "es", "ru", "zh")
TRANSLATED_SHARE = 0.075  # of all rows, in each language but English
BUDGET_SHARE = 0.032  # of all rows, what a language but English keeps: 32,000 of a million, as UltraLink does
SHARES = {"exact": 0.02, "near": 0.05, "wrong_language": 0.005, "culture": 0.01, "number": 0.01, "contaminated": 0.001}
"""Of the rows of each language; `culture` of the English ones, `number` of the translations, `contaminated` of all, in English."""
REASONS = {
    "exact": {"exact_duplicate"},
    "near": {"near_duplicate"},
    "wrong_language": {"answer_in_other_language", "answer_mixes_languages"},
    "culture": {"culture_bound"},
    "number": {"translation_numbers_differ", "translation_result_differs"},
    "contaminated": {"contaminated"},
}
"""What each kind has to be dropped for."""
COPIES = ("exact", "near")
ITEMS = 250
SAMPLED_EVERY_S = 0.2
ROWS_AT_ONCE = 10_000
MIB = 1 << 20
TREE = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "build.json"

TEACHER_LANGUAGES = ("en", "fr", "es")
SLOTS, ANSWER_S, PASSAGES, MIDDLE = 64, 1.0, 240, 0.8


# --- what the rows are written with: the same in every language, place for place ------------------------------------------------


WORKERS = {
    "en": """a baker, a gardener, a farmer, a carpenter, a teacher, a fisherman, a potter, a librarian, a cook, a tailor, a painter,
        a florist, a shepherd, a grocer, a merchant, a miller, a sailor, a coach, a porter, a watchmaker, a butcher, a student,
        a pharmacist, a beekeeper""",
    "fr": """un boulanger, un jardinier, un fermier, un menuisier, un professeur, un pêcheur, un potier, un bibliothécaire,
        un cuisinier, un tailleur, un peintre, un fleuriste, un berger, un épicier, un marchand, un meunier, un marin,
        un entraîneur, un portier, un horloger, un boucher, un étudiant, un pharmacien, un apiculteur""",
    "es": """un panadero, un jardinero, un granjero, un carpintero, un maestro, un pescador, un alfarero, un bibliotecario,
        un cocinero, un sastre, un pintor, un florista, un pastor, un tendero, un comerciante, un molinero, un marinero,
        un entrenador, un portero, un relojero, un carnicero, un estudiante, un farmacéutico, un apicultor""",
    "ru": """пекарь, садовник, фермер, плотник, учитель, рыбак, гончар, библиотекарь, повар, портной, художник, цветочник, пастух,
        бакалейщик, купец, мельник, моряк, тренер, носильщик, часовщик, мясник, студент, аптекарь, пчеловод""",
    "zh": """一位面包师, 一位园丁, 一位农民, 一位木匠, 一位老师, 一位渔夫, 一位陶匠, 一位图书管理员, 一位厨师, 一位裁缝, 一位画家,
        一位花匠, 一位牧羊人, 一位杂货商, 一位商人, 一位磨坊主, 一位水手, 一位教练, 一位搬运工, 一位钟表匠, 一位肉店老板, 一位学生,
        一位药剂师, 一位养蜂人""",
}
PLACES = {
    "en": """in a village, in a small town, by the lake, near the harbour, in the old quarter, at the market, in the valley,
        on the island, behind the station, next to the school, at the crossroads, near the bridge, in the suburbs, on the coast,
        by the river, in the mountains, by the forest, on the main square, in the yard, near the windmill""",
    "fr": """dans un village, dans une petite ville, au bord du lac, près du port, dans le vieux quartier, au marché,
        dans la vallée, sur l'île, derrière la gare, à côté de l'école, au carrefour, près du pont, en banlieue, sur la côte,
        au bord de la rivière, à la montagne, près de la forêt, sur la grande place, dans la cour, près du moulin à vent""",
    "es": """en un pueblo, en una ciudad pequeña, junto al lago, cerca del puerto, en el barrio viejo, en el mercado, en el valle,
        en la isla, detrás de la estación, al lado de la escuela, en el cruce, cerca del puente, en las afueras, en la costa,
        junto al río, en las montañas, junto al bosque, en la plaza mayor, en el patio, cerca del molino""",
    "ru": """в деревне, в маленьком городе, у озера, возле гавани, в старом квартале, на рынке, в долине, на острове, за вокзалом,
        рядом со школой, на перекрёстке, возле моста, в пригороде, на побережье, у реки, в горах, у леса, на главной площади,
        во дворе, возле мельницы""",
    "zh": """在村子里, 在小镇上, 在湖边, 在港口附近, 在老城区, 在市场上, 在山谷里, 在岛上, 在车站后面, 在学校旁边, 在十字路口,
        在桥附近, 在郊区, 在海岸边, 在河边, 在山里, 在森林边, 在中心广场, 在院子里, 在风车附近""",
}
THINGS = {
    "en": """apples, pears, oranges, tomatoes, cucumbers, eggs, loaves, candles, pencils, notebooks, books, stamps, buttons, bricks,
        tiles, plates, cups, spoons, bottles, baskets, balls, kites, tickets, postcards, saplings, tulips, roses, shells, nails,
        screws, ropes, lamps""",
    "fr": """pommes, poires, oranges, tomates, concombres, œufs, pains, bougies, crayons, cahiers, livres, timbres, boutons,
        briques, tuiles, assiettes, tasses, cuillères, bouteilles, paniers, ballons, cerfs-volants, billets, cartes postales,
        jeunes plants, tulipes, roses, coquillages, clous, vis, cordes, lampes""",
    "es": """manzanas, peras, naranjas, tomates, pepinos, huevos, panes, velas, lápices, cuadernos, libros, sellos, botones,
        ladrillos, tejas, platos, tazas, cucharas, botellas, cestas, pelotas, cometas, boletos, postales, plantones, tulipanes,
        rosas, conchas, clavos, tornillos, cuerdas, lámparas""",
    "ru": """яблок, груш, апельсинов, помидоров, огурцов, яиц, буханок хлеба, свечей, карандашей, тетрадей, книг, марок, пуговиц,
        кирпичей, черепиц, тарелок, чашек, ложек, бутылок, корзин, мячей, воздушных змеев, билетов, открыток, саженцев, тюльпанов,
        роз, ракушек, гвоздей, винтов, верёвок, ламп""",
    "zh": """苹果, 梨, 橙子, 西红柿, 黄瓜, 鸡蛋, 面包, 蜡烛, 铅笔, 笔记本, 本子, 邮票, 纽扣, 砖头, 瓦片, 盘子, 杯子, 勺子, 瓶子,
        篮子, 皮球, 风筝, 门票, 明信片, 树苗, 郁金香, 玫瑰, 贝壳, 钉子, 螺丝, 绳子, 台灯""",
}
PEOPLE = {
    "en": "Emily Watson, Oliver Grant, Priya Nair, Marco Rossi, Hannah Schmidt, Diego Alvarez, Olga Ivanova, Kenji Tanaka",
    "fr": "Emily Watson, Oliver Grant, Priya Nair, Marco Rossi, Hannah Schmidt, Diego Alvarez, Olga Ivanova, Kenji Tanaka",
    "es": "Emily Watson, Oliver Grant, Priya Nair, Marco Rossi, Hannah Schmidt, Diego Álvarez, Olga Ivánova, Kenji Tanaka",
    "ru": "Эмили Уотсон, Оливер Грант, Прия Наир, Марко Росси, Ханна Шмидт, Диего Альварес, Ольга Иванова, Кэндзи Танака",
    "zh": "艾米莉·沃森, 奥利弗·格兰特, 普里娅·奈尔, 马可·罗西, 汉娜·施密特, 迭戈·阿尔瓦雷斯, 奥尔加·伊万诺娃, 田中健二",
}
CITIES = {
    "en": "in Chicago, in Dublin, in Mumbai, in Naples, in Hamburg, in Seville, in Kazan, in Osaka",
    "fr": "à Chicago, à Dublin, à Bombay, à Naples, à Hambourg, à Séville, à Kazan, à Osaka",
    "es": "en Chicago, en Dublín, en Bombay, en Nápoles, en Hamburgo, en Sevilla, en Kazán, en Osaka",
    "ru": "в Чикаго, в Дублине, в Мумбаи, в Неаполе, в Гамбурге, в Севилье, в Казани, в Осаке",
    "zh": "在芝加哥, 在都柏林, 在孟买, 在那不勒斯, 在汉堡, 在塞维利亚, 在喀山, 在大阪",
}
# From here on a line each. {w} who, {p} where, {a} how many of {i}.
OPENINGS = {
    "en": """{W} {p} has {a} {i}.
        At the beginning of the week {w} {p} counts {a} {i}.
        {W} keeps {a} {i} {p}.
        One morning {w} opens a store {p} with {a} {i} in it.""",
    "fr": """{W} {p} possède {a} {i}.
        Au début de la semaine, {w} {p} compte {a} {i}.
        {W} garde {a} {i} {p}.
        Un matin, {w} ouvre {p} un dépôt qui contient {a} {i}.""",
    "es": """{W} {p} tiene {a} {i}.
        Al principio de la semana, {w} {p} cuenta {a} {i}.
        {W} guarda {a} {i} {p}.
        Una mañana, {w} abre {p} un almacén que contiene {a} {i}.""",
    "ru": """{W} {p} имеет {a} {i}.
        В начале недели {w} {p} насчитал {a} {i}.
        {W} хранит {p} {a} {i}.
        Однажды утром {w} открывает {p} склад, где лежит {a} {i}.""",
    "zh": """{w}{p}有{a}个{i}。
        一周开始的时候，{w}{p}数出了{a}个{i}。
        {w}{p}存放着{a}个{i}。
        有一天早上，{w}{p}打开了一间仓库，里面有{a}个{i}。""",
}
ASIDES = {
    "en": """The weather is mild and the streets are still quiet.
        Nobody expects much to happen before the holidays.
        A small dog watches everything from under the table.
        The shelves were painted green only last year.
        Most people here have known each other for a long time.
        It smells of fresh wood and of coffee.
        An old clock on the wall strikes every quarter of an hour.
        The accounts are kept in a thick blue book.
        Business has been slow because of the roadworks.
        A bell rings whenever somebody comes through the door.
        The floor has to be swept before anybody may sit down.
        Everything is written on a board beside the entrance.
        The days are getting shorter and the evenings cold.
        A radio plays softly in the next room.
        It takes a while until the lights are switched on.
        Nothing is thrown away as long as it can be used.""",
    "fr": """Il fait doux et les rues sont encore calmes.
        Personne n'attend grand-chose avant les vacances.
        Un petit chien surveille tout depuis le dessous de la table.
        Les étagères ont été peintes en vert l'année dernière.
        La plupart des gens d'ici se connaissent depuis longtemps.
        Cela sent le bois frais et le café.
        Une vieille horloge sonne tous les quarts d'heure.
        Les comptes sont tenus dans un gros livre bleu.
        Les affaires vont lentement à cause des travaux.
        Une clochette sonne dès que quelqu'un passe la porte.
        Il faut balayer le sol avant que quelqu'un puisse s'asseoir.
        Tout est écrit sur un tableau à côté de l'entrée.
        Les jours raccourcissent et les soirées sont froides.
        Une radio joue doucement dans la pièce voisine.
        Il faut un moment avant que les lumières s'allument.
        On ne jette rien tant que cela peut encore servir.""",
    "es": """Hace buen tiempo y las calles todavía están tranquilas.
        Nadie espera que pase mucho antes de las vacaciones.
        Un perro pequeño lo vigila todo desde debajo de la mesa.
        Los estantes se pintaron de verde el año pasado.
        La mayoría de la gente de aquí se conoce desde hace tiempo.
        Huele a madera fresca y a café.
        Un viejo reloj de pared suena cada cuarto de hora.
        Las cuentas se llevan en un grueso libro azul.
        El negocio va despacio por culpa de las obras.
        Una campanilla suena cuando alguien entra por la puerta.
        Hay que barrer el suelo antes de que alguien se siente.
        Todo está escrito en una pizarra junto a la entrada.
        Los días se acortan y las tardes son frías.
        Una radio suena bajito en la habitación de al lado.
        Pasa un rato hasta que se encienden las luces.
        No se tira nada mientras todavía se pueda usar.""",
    "ru": """Погода мягкая, и на улицах ещё тихо.
        Никто не ждёт больших событий до праздников.
        Маленькая собака следит за всем из-под стола.
        Полки покрасили в зелёный цвет только в прошлом году.
        Большинство людей здесь давно знают друг друга.
        Пахнет свежим деревом и кофе.
        Старые часы на стене бьют каждую четверть часа.
        Счета ведутся в толстой синей книге.
        Дела идут медленно из-за ремонта дороги.
        Колокольчик звенит, когда кто-нибудь входит в дверь.
        Пол нужно подмести, прежде чем кто-нибудь сядет.
        Всё записано на доске рядом со входом.
        Дни становятся короче, а вечера холоднее.
        В соседней комнате тихо играет радио.
        Проходит некоторое время, пока не зажгут свет.
        Ничего не выбрасывают, пока этим можно пользоваться.""",
    "zh": """天气温和，街上还很安静。
        在放假之前，没有人觉得会发生什么大事。
        一只小狗在桌子下面看着这一切。
        那些架子去年才刚刚刷成绿色。
        这里的大多数人早就互相认识了。
        空气里有新鲜木头和咖啡的味道。
        墙上的旧钟每隔一刻钟就敲响。
        账目都记在一本厚厚的蓝色册子里。
        因为修路，最近的生意比较清淡。
        每当有人进门，铃声就会响起来。
        地板必须先扫干净，大家才能坐下。
        所有的事情都写在门口的黑板上。
        白天越来越短，晚上越来越冷。
        隔壁房间里轻轻地放着收音机。
        要过一会儿，灯才会全部打开。
        只要还能用，什么东西都不会扔掉。""",
}
# What happens | how it is worked out. {a} becomes {c} by {b}, or by {m} = {k} times {b}.
EVENTS = {
    "en": """In the morning {b} more {i} arrive on a cart. | The cart brings the number up to {a} + {b} = {c}.
        A neighbour asks for {b} of them and gets them for nothing.
            | After the gift to the neighbour {a} - {b} = {c} {i} remain.
        Later {k} boxes with {b} {i} each are carried in.
            | The boxes hold {k} * {b} = {m} {i}, so there are {a} + {m} = {c} now.
        Each of {k} children takes {b} {i} home. | The children take {k} * {b} = {m} {i}, which leaves {a} - {m} = {c}.
        Rain spoils {b} of the {i} during the night. | Without the spoilt ones there are {a} - {b} = {c} {i}.
        Over the next {k} days, {b} {i} are sold a day.
            | In those days {k} * {b} = {m} {i} are sold, and {a} - {m} = {c} are left.
        Behind the door somebody finds {b} forgotten {i}. | With the forgotten ones that makes {a} + {b} = {c}.
        Then {k} friends come by, and each brings {b} {i} along. | The friends add {k} * {b} = {m}, and {a} + {m} = {c}.
        The school kitchen orders {b} {i} at noon. | The order of the kitchen reduces this to {a} - {b} = {c} {i}.
        On each of {k} shelves {b} {i} turn out to be broken. | Broken are {k} * {b} = {m} {i}, and whole are {a} - {m} = {c}.
        A customer brings back {b} {i} that were too many. | What was brought back makes {a} + {b} = {c} {i}.
        A thief makes off with {b} {i} before dawn. | The theft leaves {a} - {b} = {c}.
        A truck delivers {b} {i} an hour for {k} hours. | The truck adds {b} * {k} = {m} {i}, which gives {a} + {m} = {c}.
        The town lends {b} {i} for the summer. | Together with the loan we get {a} + {b} = {c} {i}.""",
    "fr": """Le matin, {b} {i} de plus arrivent sur une charrette. | La charrette porte le nombre à {a} + {b} = {c}.
        Un voisin en demande {b} et les reçoit gratuitement. | Après le cadeau au voisin, il reste {a} - {b} = {c} {i}.
        Plus tard, on apporte {k} caisses de {b} {i} chacune.
            | Les caisses contiennent {k} * {b} = {m} {i}, cela fait {a} + {m} = {c}.
        Chacun des {k} enfants emporte {b} {i} à la maison.
            | Les enfants prennent {k} * {b} = {m} {i}, ce qui laisse {a} - {m} = {c}.
        La pluie abîme {b} des {i} pendant la nuit. | Sans ce qui est abîmé, on compte {a} - {b} = {c} {i}.
        Pendant les {k} jours suivants, on vend {b} {i} par jour.
            | Ces jours-là on vend {k} * {b} = {m} {i}, il en reste {a} - {m} = {c}.
        Derrière la porte, quelqu'un trouve {b} {i} qu'on avait oubliés. | Avec ceux de la porte, cela fait {a} + {b} = {c}.
        Ensuite {k} amis passent, et chacun apporte {b} {i}. | Les amis ajoutent {k} * {b} = {m}, donc {a} + {m} = {c}.
        La cantine de l'école commande {b} {i} à midi. | La commande de la cantine réduit le nombre à {a} - {b} = {c} {i}.
        Sur chacune des {k} étagères, {b} {i} sont hors d'usage.
            | Il y a {k} * {b} = {m} {i} hors d'usage, et {a} - {m} = {c} en bon état.
        Un client rapporte {b} {i} qu'il avait en trop. | Ce que le client rapporte donne {a} + {b} = {c} {i}.
        Un voleur emporte {b} {i} avant l'aube. | Le vol laisse {a} - {b} = {c}.
        Un camion livre {b} {i} par heure pendant {k} heures.
            | Le camion ajoute {b} * {k} = {m} {i}, ce qui donne {a} + {m} = {c}.
        La mairie prête {b} {i} pour tout l'été. | Avec ce prêt nous obtenons {a} + {b} = {c} {i}.""",
    "es": """Por la mañana llegan {b} {i} más en una carreta. | La carreta eleva el número a {a} + {b} = {c}.
        Un vecino pide {b} y los recibe gratis. | Después del regalo al vecino quedan {a} - {b} = {c} {i}.
        Más tarde traen {k} cajas con {b} {i} cada una.
            | Las cajas contienen {k} * {b} = {m} {i}, así que ahora hay {a} + {m} = {c}.
        Cada uno de los {k} niños se lleva {b} {i} a casa. | Los niños toman {k} * {b} = {m} {i}, lo que deja {a} - {m} = {c}.
        La lluvia estropea {b} {i} durante la noche. | Sin lo estropeado hay {a} - {b} = {c} {i}.
        Durante los {k} días siguientes se venden {b} {i} al día.
            | En esos días se venden {k} * {b} = {m} {i}, y quedan {a} - {m} = {c}.
        Detrás de la puerta alguien encuentra {b} {i} que faltaban. | Con lo que faltaba se llega a {a} + {b} = {c}.
        Luego pasan {k} amigos, y cada uno trae {b} {i}. | Los amigos añaden {k} * {b} = {m}, por lo tanto {a} + {m} = {c}.
        El comedor de la escuela pide {b} {i} a mediodía. | El pedido del comedor lo reduce a {a} - {b} = {c} {i}.
        En cada uno de los {k} estantes hay {b} {i} que no sirven. | No sirven {k} * {b} = {m} {i}, y sirven {a} - {m} = {c}.
        Un cliente devuelve {b} {i} que le sobraban. | Lo que devuelve el cliente da {a} + {b} = {c} {i}.
        Un ladrón se lleva {b} {i} antes del amanecer. | El robo deja {a} - {b} = {c}.
        Un camión entrega {b} {i} por hora durante {k} horas. | El camión añade {b} * {k} = {m} {i}, lo que da {a} + {m} = {c}.
        El ayuntamiento presta {b} {i} para todo el verano. | Con el préstamo obtenemos {a} + {b} = {c} {i}.""",
    "ru": """Утром на телеге привозят ещё {b} {i}. | Вместе с телегой получается {a} + {b} = {c}.
        Сосед просит {b} штук и получает их даром. | После подарка соседу остаётся {a} - {b} = {c} {i}.
        Позже вносят {k} ящиков, и в каждом лежит {b} {i}. | В ящиках {k} * {b} = {m} {i}, значит, теперь их {a} + {m} = {c}.
        Каждый из {k} детей уносит домой {b} {i}. | Дети берут {k} * {b} = {m} {i}, и остаётся {a} - {m} = {c}.
        За ночь дождь портит {b} {i}. | Без испорченных их {a} - {b} = {c} {i}.
        В следующие {k} дней продают по {b} {i} в день. | За эти дни продано {k} * {b} = {m} {i}, осталось {a} - {m} = {c}.
        За дверью кто-то находит {b} забытых {i}. | Вместе с забытыми выходит {a} + {b} = {c}.
        Потом приходят {k} друзей, и каждый приносит {b} {i}. | Друзья добавляют {k} * {b} = {m}, поэтому {a} + {m} = {c}.
        Школьная столовая заказывает в полдень {b} {i}. | Заказ столовой уменьшает число до {a} - {b} = {c} {i}.
        На каждой из {k} полок оказалось {b} негодных {i}. | Негодных {k} * {b} = {m} {i}, а целых {a} - {m} = {c}.
        Покупатель возвращает {b} лишних {i}. | После возврата становится {a} + {b} = {c} {i}.
        Перед рассветом вор уносит {b} {i}. | После кражи остаётся {a} - {b} = {c}.
        Грузовик привозит по {b} {i} в час в течение {k} часов.
            | Грузовик добавляет {b} * {k} = {m} {i}, получаем {a} + {m} = {c}.
        Город одалживает на всё лето {b} {i}. | Вместе с одолженными получаем {a} + {b} = {c} {i}.""",
    "zh": """早上，一辆马车又运来了{b}个{i}。 | 加上马车运来的，数量变成{a} + {b} = {c}个。
        一位邻居来要{b}个，免费拿走了。 | 送给邻居以后，还剩下{a} - {b} = {c}个{i}。
        后来又搬进来{k}个箱子，每个箱子里有{b}个{i}。 | 箱子里一共有{k} * {b} = {m}个{i}，所以现在有{a} + {m} = {c}个。
        {k}个孩子每人带了{b}个{i}回家。 | 孩子们一共拿走{k} * {b} = {m}个{i}，因此剩下{a} - {m} = {c}个。
        夜里下雨，弄坏了{b}个{i}。 | 去掉坏掉的，还有{a} - {b} = {c}个{i}。
        在接下来的{k}天里，每天卖出{b}个{i}。 | 这几天共卖出{k} * {b} = {m}个{i}，还剩{a} - {m} = {c}个。
        有人在门后面找到了{b}个被忘掉的{i}。 | 算上被忘掉的，一共是{a} + {b} = {c}个。
        然后来了{k}位朋友，每人都带来{b}个{i}。 | 朋友们增加了{k} * {b} = {m}个，于是得到{a} + {m} = {c}个。
        中午学校食堂订购了{b}个{i}。 | 食堂的订单让数量减少到{a} - {b} = {c}个{i}。
        在{k}个架子上，每个架子都有{b}个{i}是坏的。 | 坏的有{k} * {b} = {m}个{i}，完好的有{a} - {m} = {c}个。
        一位顾客退回了多买的{b}个{i}。 | 顾客退货以后，变成{a} + {b} = {c}个{i}。
        天亮之前，小偷偷走了{b}个{i}。 | 被偷以后，剩下{a} - {b} = {c}个。
        一辆卡车每小时送来{b}个{i}，一共送了{k}个小时。 | 卡车增加了{b} * {k} = {m}个{i}，得到{a} + {m} = {c}个。
        镇上整个夏天借出了{b}个{i}给大家用。 | 加上借来的，我们得到{a} + {b} = {c}个{i}。""",
}
EFFECTS = "+ - +* -* - -* + +* - -* + - +* +".split()  # of each event on the amount
ENDINGS = {
    "en": """How many {i} are there in the end?
        How many {i} does that leave altogether?
        What is the number of {i} after all this?
        How many {i} can be counted now?""",
    "fr": """Combien de {i} y a-t-il à la fin ?
        Combien de {i} cela laisse-t-il en tout ?
        Quel est le nombre de {i} après tout cela ?
        Combien de {i} peut-on compter maintenant ?""",
    "es": """¿Cuántas unidades de {i} hay al final?
        ¿Cuántas unidades de {i} quedan en total?
        ¿Cuál es el número de {i} después de todo esto?
        ¿Cuántas unidades de {i} se pueden contar ahora?""",
    "ru": """Сколько {i} получилось в конце?
        Сколько {i} осталось всего?
        Каково число {i} после всего этого?
        Сколько {i} можно насчитать теперь?""",
    "zh": """最后一共有多少个{i}？
        这样总共还剩下多少个{i}？
        经过这一切，{i}的数量是多少？
        现在能数出多少个{i}？""",
}
# Worded unlike the rows, so that only rows with a planted item share a stretch with one. The last is how it is worked out.
EVALUATION = """\
    Nadia reads {a} pages of a novel every evening and another {b} on the bus, so how many does she finish within {k} weeks?
            | ({a}+{b})*7*{k}
    For a marathon Tomas runs {a} kilometres on weekdays and {b} on Sundays; what distance has he covered after {k} full weeks?
            | ({a}*5+{b})*{k}
    A cinema charges adults {a} euros, and {b} students pay half as much each as {k} adults together would; what is the income?
            | {a}*{k}+{b}*{a}*{k}//2
    Grandmother knits {a} rows of a scarf per hour, rests for {b} minutes, and knits for {k} hours more: how many rows get done?
            | {a}*{k}+{b}*0
    When Lucas fills the aquarium with {a} litres it leaks {b} litres an evening; what must he refill in {k} days?
            | {b}*{k}
    Every member of a choir of {a} pays {b} crowns of dues a month, how much does the treasurer collect over {k} months?
            | {a}*{b}*{k}
    Two cyclists start {a} kilometres apart and ride toward one another at {b} and {k} kilometres per hour; how far apart then?
            | {a}-{b}-{k}
    Maya saves {a} cents on Monday, adds {b} on Tuesday, and triples her savings by Friday before spending {k}: what has she saved?
            | ({a}+{b})*3-{k}
    The hotel has {a} floors with {b} rooms apiece, and {k} of all these rooms are being renovated, so how many may guests book?
            | {a}*{b}-{k}
    If a printer needs {a} seconds for a page and {b} seconds to warm up, how long does a report of {k} pages take it?
            | {a}*{k}+{b}"""


def _lines(text: str) -> list[str]:
    """One that begins with | goes on with the line before."""
    return [" ".join(line.split()) for line in re.sub(r"\s*\n\s*\|", " |", text).split("\n")]


def _entries(texts: dict[str, str], separator: str) -> dict[str, list[str]]:
    split = {
        code: _lines(text) if separator == "\n" else _lines(text.replace("\n", " ").replace(separator, "\n"))
        for code, text in texts.items()
    }
    assert len({len(parts) for parts in split.values()}) == 1, {language: len(parts) for language, parts in split.items()}
    return split


_WORKERS, _PLACES, _THINGS = _entries(WORKERS, ","), _entries(PLACES, ","), _entries(THINGS, ",")
_PEOPLE, _CITIES = _entries(PEOPLE, ","), _entries(CITIES, ",")
_OPENINGS, _ASIDES, _ENDINGS = _entries(OPENINGS, "\n"), _entries(ASIDES, "\n"), _entries(ENDINGS, "\n")
_EVENTS = {code: [event.split(" | ") for event in events] for code, events in _entries(EVENTS, "\n").items()}


# --- one problem ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A problem in no language yet: places in the lists above, and numbers."""

    worker: int
    place: int
    thing: int
    opening: int
    aside: int
    ending: int
    named: bool
    """Whether `worker` and `place` are a person and a city."""
    start: int
    events: tuple[tuple[int, int, int, int, int], ...]
    """Which, then b, k, m and c of its sentences."""


def problem(seed: int, number: int, *, named: bool = False) -> Problem:
    """The same for the same numbers, whatever was asked for before."""
    draw = Random(seed << 40 | number).random

    def below(count: int) -> int:
        return int(draw() * count)

    amount = start = 150 + below(850)
    drawn = [below(len(EFFECTS))]
    while len(drawn) < 2 + (number & 1):
        if (event := below(len(EFFECTS))) not in drawn:
            drawn.append(event)
    events = []
    for event in drawn:
        effect = EFFECTS[event]
        k = 2 + below(8) if "*" in effect else 1
        b = 3 + below(180 // k) if effect[0] == "+" else 1 + below(max(1, min(180, amount - 10) // k))
        amount += k * b if effect[0] == "+" else -k * b
        events.append((event, b, k, k * b, amount))
    people, cities = (_PEOPLE, _CITIES) if named else (_WORKERS, _PLACES)
    places = [len(lines["en"]) for lines in (people, cities, _THINGS, _OPENINGS, _ASIDES, _ENDINGS)]
    return Problem(*map(below, places), named, start, tuple(events))


def render(own: Problem, language: str) -> tuple[str, str]:
    """Question and worked answer."""
    worker = (_PEOPLE if own.named else _WORKERS)[language][own.worker]
    place = (_CITIES if own.named else _PLACES)[language][own.place]
    thing = _THINGS[language][own.thing]
    capital = worker[0].upper() + worker[1:]
    amount = own.start
    told = [_OPENINGS[language][own.opening].format(w=worker, W=capital, p=place, a=amount, i=thing), _ASIDES[language][own.aside]]
    worked = []
    for event, b, k, m, c in own.events:
        happens, working = _EVENTS[language][event]
        told.append(happens.format(b=b, k=k, i=thing))
        worked.append(working.format(a=amount, b=b, k=k, m=m, c=c, i=thing))
        amount = c
    told.append(_ENDINGS[language][own.ending].format(i=thing))
    return ("" if language == "zh" else " ").join(told), "\n".join([*worked, f"#### {amount}"])


def nearly(own: Problem, number: int) -> Problem:
    """Another worker, and every other time another place."""
    workers, places = len(_WORKERS["en"]), len(_PLACES["en"])
    place = (own.place + 1 + number % (places - 1)) % places if number & 1 else own.place
    return replace(own, worker=(own.worker + 1 + number % (workers - 1)) % workers, place=place)


def evaluation_items(seed: int) -> list[tuple[str, int]]:
    """Items with their answers, such as MGSM has."""
    draw = Random(seed)
    patterns = [line.split(" | ") for line in _lines(EVALUATION.strip().replace("|", " | "))]
    items = []
    for number in range(ITEMS):
        text, working = patterns[number % len(patterns)]
        values = {"a": draw.randint(100, 999), "b": draw.randint(11, 49), "k": draw.randint(2, 9)}
        items.append((text.format(**values), int(eval(working.format(**values)))))
    return items


class RealRows:
    """GSM8K's problems with their numbers varied: one a row, then two a row, since varied numbers alone leave near-duplicates."""

    _NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")

    def __init__(self, file: Path) -> None:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        self._rows = [(row["question"], re.sub(r"<<.*?>>", "", row["answer"])) for row in rows]

    def row(self, seed: int, number: int) -> tuple[str, str]:
        if number < len(self._rows):
            return self._varied(number, seed, number)
        draw = Random(seed << 40 | number)
        first, second = draw.sample(range(len(self._rows)), 2)
        (one, worked), (other, also) = self._varied(first, seed, number), self._varied(second, seed, number)
        return f"{one}\n{other}", f"{worked.partition('####')[0]}{also}"

    def _varied(self, which: int, seed: int, number: int) -> tuple[str, str]:
        """Each number by the same other one of as many digits wherever it stands; 0 to 9 as they are."""

        def other(found: re.Match[str]) -> str:
            text = found[0]
            if not text.isdigit() or len(text) < 2:
                return text
            least = 10 ** (len(text) - 1)
            return str(least + (int(text) - least + 13 * (number + seed) + 7) % (9 * least))

        question, answer = self._rows[which]
        return self._NUMBER.sub(other, question), self._NUMBER.sub(other, answer)


# --- the pool -------------------------------------------------------------------------------------------------------------------

KINDS = ("", *SHARES)
SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "group", "language", "question", "answer")])
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Section:
    """The rows of one language. `kind` (rows): places in KINDS; `source` (rows): what a copy copies, or the row itself."""

    kind: npt.NDArray[np.uint8]
    source: I64
    problem: I64
    """(rows): the number of the row's problem, which is the English row that it is a translation of."""


def sections(rows: int, seed: int) -> dict[str, Section]:
    """What every row of the pool is to be: 17 bytes a row."""
    draw = np.random.default_rng(seed)
    each = round(rows * TRANSLATED_SHARE)
    count = rows - each * (len(LANGUAGES) - 1)
    wanted = {kind: round(SHARES[kind] * count) for kind in (*COPIES, "wrong_language", "culture")}
    wanted["contaminated"] = round(SHARES["contaminated"] * rows)
    plan = {"en": _section(np.arange(count), np.zeros(count, dtype=bool), wanted, draw)}
    culture = plan["en"].kind == KINDS.index("culture")
    wanted = {kind: round(SHARES[kind] * each) for kind in (*COPIES, "wrong_language", "number")}
    originals = each - wanted["exact"] - wanted["near"]
    candidates = np.flatnonzero((plan["en"].kind == 0) | culture)
    groups = np.sort(draw.choice(candidates, originals, replace=False))
    for language in LANGUAGES[1:]:
        # The copies come to stand anywhere among the originals, whose order is the English one.
        place = np.sort(draw.choice(each, originals, replace=False))
        own = np.full(each, -1)
        own[place] = groups
        plan[language] = _section(own, np.append(culture, False)[own], wanted, draw)
    return plan


def _section(own: I64, culture: npt.NDArray[np.bool_], wanted: dict[str, int], draw: np.random.Generator) -> Section:
    """Kinds for the rows, of which those without a problem (-1) are copies; where there are none, copies are chosen too."""
    kind = np.zeros(len(own), dtype=np.uint8)
    kind[culture] = KINDS.index("culture")
    blank = draw.permutation(np.flatnonzero(own < 0))
    free = draw.permutation(np.flatnonzero((own >= 0) & ~culture))
    source, numbers = np.arange(len(own)), own.copy()
    for name, count in wanted.items():
        if name in COPIES and len(blank):
            chosen, blank = blank[:count], blank[count:]
        else:
            chosen, free = free[:count], free[count:]
        kind[chosen] = KINDS.index(name)
        if name in COPIES:
            source[chosen], free = free[:count], free[count:]  # each is copied once
            numbers[chosen] = own[source[chosen]]
    return Section(kind, source, numbers)


@dataclass(frozen=True)
class Pool:
    """The files of a pool that was written."""

    rows: Path
    evaluation: Path
    planted: Path
    seconds: float
    characters: float
    """Of a row, question and answer, on average."""


def write_pool(folder: Path, rows: int, *, layout: str, seed: int, data: Path | None) -> Pool:
    """Write a pool, or find that it was written before. `data`: a folder with gsm8k and mgsm, whose texts are used for English."""
    files = [folder / f"pool.{layout}", folder / "evaluation.tsv", folder / "planted.tsv"]
    done = folder / "pool.json"
    asked = {"rows": rows, "layout": layout, "seed": seed, "real": data is not None, "code": _hash(Path(__file__))}
    if done.exists() and (before := json.loads(done.read_text()))["asked"] == asked:
        return Pool(*files, before["seconds"], before["characters"])
    folder.mkdir(parents=True, exist_ok=True)
    began, characters = time.perf_counter(), 0
    items = evaluation_items(seed)
    if data is not None and (mgsm := data / "mgsm" / "mgsm_en.tsv").exists():
        items = [(line.split("\t")[0], 0) for line in mgsm.read_text("utf-8").splitlines() if line.strip()]
    files[1].write_text("".join(f"{text}\t{answer}\n" for text, answer in items), "utf-8")
    real = None if data is None else RealRows(data / "gsm8k" / "train.jsonl")
    with files[2].open("w", encoding="utf-8") as planted, contextlib.ExitStack() as stack:
        write = stack.enter_context(_writer(files[0], layout))
        for batch in _batches(pool_rows(rows, seed, [text for text, _ in items], real)):
            planted.writelines(f"{row[0]}\t{kind}\t{partner}\n" for row, kind, partner in batch if kind)
            characters += sum(len(row[3]) + len(row[4]) for row, _, _ in batch)
            write([row for row, _, _ in batch])
    measured = {"seconds": round(time.perf_counter() - began, 1), "characters": round(characters / rows)}
    done.write_text(json.dumps({"asked": asked, **measured}))
    return Pool(*files, **measured)


Row = tuple[str, str, str, str, str]


def pool_rows(rows: int, seed: int, items: Sequence[str], real: RealRows | None = None) -> Iterator[tuple[Row, str, str]]:
    """Rows with what was planted in them and, of copies, whose they are; ids count within a language."""
    plan = sections(rows, seed)
    english = plan["en"]
    translated = np.zeros(len(english.kind), dtype=bool)
    translated[plan["fr"].problem] = True
    for language, section in plan.items():
        for place, (code, source, number) in enumerate(zip(section.kind, section.source, section.problem, strict=True)):
            kind = KINDS[code]
            own = problem(seed, int(number), named=KINDS[english.kind[number]] == "culture")
            if real and language == "en" and not translated[number] and kind != "culture":
                question, answer = real.row(seed, int(number))
                if kind == "near":
                    question = _another_word(question, Random(place))
            else:
                question, answer = render(nearly(own, place) if kind == "near" else own, language)
            if kind == "wrong_language":
                others = [other for other in LANGUAGES if other != language]
                answer = render(own, others[place % len(others)])[1]
            elif kind == "number":
                question, answer = _another_number(question, answer, Random(place))
            elif kind == "contaminated":
                question = f"{items[place % len(items)]} {question}"
            of = "" if source == place else f"{language}-{source:07d}"
            # A copy of an English row is a row of its own; that of a translation is a translation, too.
            group = place if language == "en" else number
            planted = "" if language == "en" and kind == "culture" else kind  # such a row stays, its translations do not
            yield (f"{language}-{place:07d}", f"g{group:07d}", language, question, answer), planted, of


def _another_word(text: str, draw: Random) -> str:
    words = list(re.finditer(r"\b[a-z]{4,8}\b", text))
    if not words:
        return text + " Explain."
    gone = draw.choice(words)
    return text[: gone.start()] + draw.choice("simple usual little common single".split()) + text[gone.end() :]


def _another_number(question: str, answer: str, draw: Random) -> tuple[str, str]:
    """One number of the question, or the result, is a few more."""
    found = draw.choice([*re.finditer(r"\d+", question), None])
    more = draw.randint(1, 9)
    if found is None:
        worked, mark, result = answer.rpartition("#### ")
        return question, f"{worked}{mark}{int(result) + more}"
    return question[: found.start()] + str(int(found[0]) + more) + question[found.end() :], answer


def _batches(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(rows, ROWS_AT_ONCE)):
        yield batch


@contextlib.contextmanager
def _writer(file: Path, layout: str) -> Iterator[Any]:
    if layout == "jsonl":
        with file.open("w", encoding="utf-8") as out:
            names = SCHEMA.names
            yield lambda rows: out.writelines(
                json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n" for row in rows
            )
    else:
        with pq.ParquetWriter(file, SCHEMA, compression="zstd") as out:
            yield lambda rows: out.write_table(pa.table([pa.array(own) for own in zip(*rows, strict=True)], schema=SCHEMA))


# --- one command, measured ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A way to run the build."""

    name: str
    tree: Path = TREE
    executor: str = ""
    workers: int = 0
    ray_address: str = ""
    part_rows: int = 0
    equal: str = ""
    overrides: tuple[str, ...] = ()

    def command(self, recipe: Path, out: Path, *overrides: str) -> list[str]:
        """Without any of the newer options where they are not asked for: older commits lack them."""
        command = [sys.executable, "-m", "flows.cli", "build", str(recipe), "--out", str(out)]
        for option, value in (("executor", self.executor), ("workers", self.workers), ("ray-address", self.ray_address)):
            command += [f"--{option}", str(value)] if value else []
        parts = [f"engine.part_rows={self.part_rows}"] if self.part_rows else []
        for override in (*self.overrides, *parts, *overrides):
            command += ["--set", override]
        return command

    def environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(self.tree), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}

    def commit(self) -> str:
        """With a + where files were changed since."""
        git = ["git", "-C", str(self.tree)]
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--untracked-files=no", "pipeline", "flows"]
        changed = subprocess.run(status, check=False, capture_output=True, text=True).stdout.strip()
        return f"{commit or 'unknown'}{'+' if changed else ''}"


def variant(text: str, common: Variant) -> Variant:
    """`NAME,KEY=VALUE,…` on top of what is common to all."""
    name, *given = text.split(",")
    values = dict(part.split("=", 1) for part in given)
    types = {"tree": lambda value: Path(value).resolve(), "workers": int, "part_rows": int}
    unknown = values.keys() - {"tree", "executor", "workers", "ray_address", "part_rows", "equal"}
    if unknown:
        raise SystemExit(f"--compare {text}: there is no {sorted(unknown)[0]!r}; see --help")
    return replace(common, name=name, **{key: types.get(key, str)(value) for key, value in values.items()})


def run(command: Sequence[str], environment: dict[str, str], folder: Path) -> dict[str, float]:
    """Wall and processor seconds and the peak of PSS, of a command and of everything that it starts."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what the command leaves behind becomes our child
    others = set(_family(os.getpid()))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    log = folder / "command.log"
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLED_EVERY_S):
            peak = max(peak, sum(map(_pss, set(_family(os.getpid())) - others)))

    with log.open("w") as output:
        # Not in the folder of a tree: `python -m` would put that before PYTHONPATH.
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            code = process.wait()
        finally:
            seconds = time.perf_counter() - began
            done.set()
            watcher.join()
            _gather(others)
    if code:
        raise SystemExit(f"{' '.join(command)}: exit code {code}\n{log.read_text()[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(seconds, 2), "cpu_s": round(cpu, 2), "peak_pss_mib": round(peak / MIB)}


def _family(pid: int) -> Iterator[int]:
    """The processes below one, whichever of its threads started them."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from _family(int(child))


def _pss(pid: int) -> int:
    """Bytes."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE):
            return int(found[1]) << 10
    return 0


def _gather(others: set[int], patience_s: float = 15.0) -> None:
    """Wait for what the command left behind, and end what stays; so its processor time is counted."""
    end = time.perf_counter() + patience_s
    while left := set(_family(os.getpid())) - others:
        for pid in left:
            with contextlib.suppress(OSError):
                if time.perf_counter() > end:
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)


# --- a build, and what it dropped -----------------------------------------------------------------------------------------------


def write_recipe(folder: Path, pool: Pool, rows: int) -> Path:
    budget = ", ".join(f"{language} = {_budget(rows)}" for language in LANGUAGES[1:])
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'name = "benchmark"\nlanguages = {json.dumps(LANGUAGES)}\n\n'
        f'[agnostic.math]\npath = {json.dumps(str(pool.rows))}\nbudget = {{ en = "all", {budget} }}\nlicence = "CC0 1.0"\n\n'
        f"[clean]\nevaluation_sets = [{json.dumps(str(pool.evaluation))}]\n",
        "utf-8",
    )
    return recipe


def _budget(rows: int) -> int:
    return max(1, round(rows * BUDGET_SHARE))


def measure(own: Variant, pool: Pool, rows: int, folder: Path) -> dict[str, Any]:
    """A fresh build, the same finished, and one with another budget."""
    out = folder / "out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recipe = write_recipe(folder, pool, rows)
    result: dict[str, Any] = {"fresh": run(own.command(recipe, out), own.environment(), folder)}
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    result["stage_s"] = json.loads((out / "timings.json").read_text("utf-8"))
    result["stages"] = [{key: stage[key] for key in ("stage", "rows_in", "rows_out", "dropped")} for stage in manifest["stages"]]
    result["rows_in"], result["rows_out"] = manifest["stages"][0]["rows_in"], manifest["stages"][-1]["rows_out"]
    result |= outcome(pool.planted, out)
    result["sha256"] = {str(file.relative_to(out)): _hash(file) for file in published(out)}
    result["work_mib"] = round(sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / MIB)
    result["finished"] = run(own.command(recipe, out), own.environment(), folder)
    budget = f"agnostic.math.budget.fr={max(1, _budget(rows) // 2)}"
    result["changed"] = run(own.command(recipe, out, budget), own.environment(), folder)
    return result


def published(out: Path) -> list[Path]:
    return sorted(file for name in ("data", "dropped") for file in (out / name).rglob("*.parquet"))


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def outcome(planted: Path, out: Path) -> dict[str, Any]:
    """Of what was planted how much was found, and what else was dropped, by reason."""
    reasons: dict[str, str] = {}
    for file in sorted((out / "dropped").glob("*.parquet")):
        table = pq.read_table(file, columns=["source", "reason"])
        titles = [source["title"] for source in table.column("source").to_pylist()]
        reasons.update(zip(titles, table.column("reason").to_pylist(), strict=True))
    found, wanted, otherwise = Counter[str](), Counter[str](), Counter[str]()
    accounted = set()
    for line in planted.read_text("utf-8").splitlines():
        row, kind, partner = line.split("\t")
        wanted[kind] += 1
        hit = reasons.get(row) in REASONS[kind] or (kind in COPIES and reasons.get(partner) in REASONS[kind])
        found[kind] += hit
        accounted.add(row)
        if kind in COPIES and reasons.get(partner) in REASONS[kind]:
            accounted.add(partner)
        if not hit:
            otherwise[f"{kind}: {reasons.get(row, 'kept')}"] += 1
    unplanted = Counter(reason for row, reason in reasons.items() if row not in accounted)
    return {
        "planted": {kind: [found[kind], wanted[kind]] for kind in SHARES},
        "not_found": dict(sorted(otherwise.items())),
        "unplanted_dropped": dict(sorted(unplanted.items())),
    }


def warm_up(own: Variant, folder: Path) -> None:
    """A small build, unmeasured: compiled kernels and the disk's cache are there for all. Tells whose code runs."""
    where = [sys.executable, "-c", "import pipeline; print(pipeline.__file__)"]
    told = subprocess.run(where, env=own.environment(), cwd=folder, check=False, capture_output=True, text=True)
    if told.returncode or not Path(told.stdout.strip()).is_relative_to(own.tree.resolve()):
        raise SystemExit(f"{own.name}: expected a pipeline in {own.tree}, got {told.stdout.strip() or told.stderr[-2000:]}")
    pool = write_pool(folder / "small", 1_000, layout="parquet", seed=1, data=None)
    recipe = write_recipe(folder / "small", pool, 1_000)
    shutil.rmtree(folder / "small" / "out", ignore_errors=True)
    run(replace(own, part_rows=0).command(recipe, folder / "small" / "out"), own.environment(), folder)


# --- a teacher ------------------------------------------------------------------------------------------------------------------

# Question | answer, which stands in the passage. {n} is the town.
FACTS = {
    "en": """Why is the harbour of {n} so deep?
            | The harbour of {n} is deep because a glacier once carved the bay out of solid rock.
        Who built the lighthouse of {n}?
            | The lighthouse of {n} was built by masons from the northern islands, who used grey granite.
        When does the market of {n} open?
            | The market of {n} opens before sunrise, when farmers bring cheese and honey from the hills.
        What colour are the roofs in {n}? | The roofs in {n} are red, since clay from the river turns that colour in the kiln.
        How do the people of {n} dry their fish? | The people of {n} dry fish on wooden racks that stand above the windy beach.
        Where does the water of {n} come from?
            | The water of {n} comes from a spring below the castle and flows through stone pipes.
        What is taught at the school of {n}?
            | At the school of {n} children learn to sail, to mend nets and to read the clouds.""",
    "fr": """Pourquoi le port de {n} est-il si profond ?
            | Le port de {n} est profond parce qu'un glacier a creusé la baie dans la roche dure.
        Qui a construit le phare de {n} ?
            | Le phare de {n} a été construit par des maçons venus des îles du nord avec du granit gris.
        Quand ouvre le marché de {n} ?
            | Le marché de {n} ouvre avant l'aube, quand les fermiers apportent du fromage et du miel.
        De quelle couleur sont les toits à {n} ?
            | Les toits à {n} sont rouges, car l'argile de la rivière prend cette couleur dans le four.
        Comment les habitants de {n} sèchent-ils le poisson ?
            | Les habitants de {n} sèchent le poisson sur des claies de bois au-dessus de la plage.
        D'où vient l'eau de {n} ? | L'eau de {n} vient d'une source sous le château et coule dans des tuyaux de pierre.
        Qu'apprend-on à l'école de {n} ?
            | À l'école de {n}, les enfants apprennent à naviguer, à réparer les filets et à lire les nuages.""",
    "es": """¿Por qué es tan profundo el puerto de {n}?
            | El puerto de {n} es profundo porque un glaciar excavó la bahía en la roca dura.
        ¿Quién construyó el faro de {n}?
            | El faro de {n} fue construido por canteros llegados de las islas del norte con granito gris.
        ¿Cuándo abre el mercado de {n}? | El mercado de {n} abre antes del amanecer, cuando los campesinos traen queso y miel.
        ¿De qué color son los tejados de {n}?
            | Los tejados de {n} son rojos, pues la arcilla del río toma ese color en el horno.
        ¿Cómo secan el pescado los vecinos de {n}?
            | Los vecinos de {n} secan el pescado en bastidores de madera sobre la playa ventosa.
        ¿De dónde viene el agua de {n}? | El agua de {n} viene de un manantial bajo el castillo y corre por tubos de piedra.
        ¿Qué se enseña en la escuela de {n}?
            | En la escuela de {n} los niños aprenden a navegar, a remendar redes y a leer las nubes.""",
}
_DIALOGUE = re.compile(r"\n– ")  # how a prompt for a further question shows the dialogue so far


def towns(language: str, count: int) -> list[str]:
    """Names that no two pages share, in whichever languages."""
    heads = "Am Bel Cin Dor El Fan Gal Hil Ist Jor Kal Lum".split()
    middles = "ba ve da ro mi na".split()
    tails = {"en": "rin las ton vik", "fr": "relle line sac gny", "es": "rilla lona cedo zar"}[language].split()
    return ["".join(parts) for parts in itertools.islice(itertools.product(heads, middles, tails), count)]


def facts_of(language: str, town: str) -> dict[str, str]:
    """Answers by question."""
    lines = (line.format(n=town) for line in _lines(FACTS[language]))
    return dict(line.split(" | ") for line in lines)


def reply(messages: Sequence[dict[str, str]], pages: dict[str, dict[str, str]]) -> str:
    """The next fact that was not asked about, as a question; or the answer to the question that stands in the last message."""
    said, last = "\n".join(message["content"] for message in messages), messages[-1]["content"]
    facts = next(pages[word] for word in re.findall(r"[A-Z][a-z]+", said) if word in pages)
    if not _DIALOGUE.search(last):
        for question, answer in facts.items():
            if question in last:
                return answer
    return next(question for question in facts if question not in last)


def answer_time(text: str, sigma: float) -> float:
    """Seconds, log-normal with the mean `ANSWER_S`, the same for the same request."""
    return ANSWER_S * Random(text).lognormvariate(-(sigma**2) / 2, sigma) if sigma else ANSWER_S


def serve(port: Any, pages: dict[str, dict[str, str]], sigma: float) -> None:
    """Chat completions in `SLOTS` slots; `/busy` tells when a slot was taken (1) or given back (-1)."""
    from aiohttp import web

    changes: list[tuple[float, int]] = []
    slots = asyncio.Semaphore(SLOTS)

    async def answer(request: web.Request) -> web.Response:
        messages = json.loads(await request.read())["messages"]
        takes = answer_time("".join(message["content"] for message in messages), sigma)
        async with slots:
            changes.append((time.monotonic(), 1))
            try:
                await asyncio.sleep(takes)
            finally:
                changes.append((time.monotonic(), -1))
        message = {"role": "assistant", "content": reply(messages, pages)}
        usage = {"prompt_tokens": 300, "completion_tokens": 30, "total_tokens": 330}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return web.json_response(
            {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        )

    async def busy(_: web.Request) -> web.Response:
        return web.json_response(changes)

    async def forever() -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", answer)
        app.router.add_get("/busy", busy)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        port.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(forever())


@contextlib.contextmanager
def server(pages: dict[str, dict[str, str]], sigma: float) -> Iterator[str]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, pages, sigma), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.kill()
        process.join()


def busy_share(changes: Sequence[tuple[float, int]], begin: float, end: float) -> float:
    """The mean share of the slots that were taken. `begin` and `end` are shares of the time from the first change to the last."""
    first, last = changes[0][0], changes[-1][0]
    begin, end = first + begin * (last - first), first + end * (last - first)
    area, busy, before = 0.0, 0, begin
    for when, change in changes:
        now = min(max(when, begin), end)
        area += busy * (now - before)
        busy, before = busy + change, now
    return round(area / SLOTS / (end - begin), 3)


def _busy_seconds(changes: Sequence[tuple[float, int]]) -> float:
    return -sum(when * change for when, change in changes)


def ask_a_teacher(own: Variant, passages: int, sigma: float, folder: Path) -> dict[str, Any]:
    """Grounded dialogues in three languages from one teacher."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pages = {town: facts_of(language, town) for language in TEACHER_LANGUAGES for town in towns(language, passages)}
    recipe = ['name = "teacher"', f"languages = {json.dumps(TEACHER_LANGUAGES)}", "clean.near_duplicate_threshold = 1.0"]
    for language in TEACHER_LANGUAGES:
        with (folder / f"{language}.jsonl").open("w", encoding="utf-8") as file:
            for town in towns(language, passages):
                page = {"id": town, "url": f"http://x/{town}", "title": town, "text": "\n\n".join(pages[town].values())}
                file.write(json.dumps(page, ensure_ascii=False) + "\n")
        recipe += [f"[knowledge.{language}]", 'kind = "jsonl"', f'path = "{language}.jsonl"', "min_tokens = 50"]
        recipe += [f"[[dialogues.{language}]]", 'mode = "grounded"', 'teacher = "main"']
    with server(pages, sigma) as url:
        teacher = ["[teachers.main]", 'kind = "openai"', f'base_url = "{url}/v1"', 'model = "m"', f"max_concurrency = {SLOTS}"]
        (folder / "recipe.toml").write_text("\n".join([*recipe, *teacher]) + "\n", "utf-8")
        result: dict[str, Any] = run(own.command(folder / "recipe.toml", folder / "out"), own.environment(), folder)
        with urllib.request.urlopen(f"{url}/busy") as response:
            changes = json.load(response)
    manifest = json.loads((folder / "out" / "manifest.json").read_text("utf-8"))
    made = [stage for stage in manifest["stages"] if stage["stage"].startswith("grounded")]
    edge = (1 - MIDDLE) / 2
    requests = sum(change > 0 for _, change in changes)
    return result | {
        "requests": requests,
        "ideal_s": round(_busy_seconds(changes) / SLOTS, 1),
        "asking_s": round(changes[-1][0] - changes[0][0], 1),
        "busy_middle": busy_share(changes, edge, 1 - edge),
        "busy": busy_share(changes, 0, 1),
        "busy_by_twentieth": [busy_share(changes, number / 20, (number + 1) / 20) for number in range(20)],
        "dialogues": {stage["stage"]: [stage["rows_out"], stage["dropped"]] for stage in made},
        "sha256": {str(file.relative_to(folder / "out")): _hash(file) for file in published(folder / "out")},
    }


# --- the report -----------------------------------------------------------------------------------------------------------------


def report(results: dict[str, Any]) -> str:
    lines: list[str] = []
    for title, builds in results.get("builds", {}).items():
        lines += [*_compared(title, builds), *itertools.chain(*(_in_detail(name, own) for name, own in builds.items()))]
    for title, builds in results.get("teacher", {}).items():
        lines += [
            f"| {title} | requests | s | ideal s | slots busy, middle {MIDDLE:.0%} | whole | CPU s | MiB | dialogues | bytes |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
        ]
        for name, own in builds.items():
            numbers = [f"{own['requests']:,}", own["wall_s"], own["ideal_s"], own["busy_middle"], own["busy"], own["cpu_s"]]
            numbers += [own["peak_pss_mib"], sum(made for made, _ in own["dialogues"].values()), _same(name, builds)]
            lines.append(f"| {name} ({own['commit']}) | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines).strip()


def _compared(title: str, builds: dict[str, Any]) -> Iterable[str]:
    yield f"| {title} | s | CPU s | ms CPU a row | peak MiB (PSS) | finished, s | last step changed, s | rows out | bytes |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---|"
    for name, own in builds.items():
        fresh = own["fresh"]
        numbers = [f"{fresh['wall_s']:.1f}", f"{fresh['cpu_s']:.1f}", f"{1000 * fresh['cpu_s'] / own['rows_in']:.2f}"]
        numbers += [f"{fresh['peak_pss_mib']:,}", f"{own['finished']['wall_s']:.1f}", f"{own['changed']['wall_s']:.1f}"]
        yield f"| {name} ({own['commit']}) | {' | '.join(numbers)} | {own['rows_out']:,} | {_same(name, builds)} |"
    yield ""


def _same(name: str, builds: dict[str, Any]) -> str:
    """Whether the bytes are those of the first variant of the group."""
    own = builds[name]
    first = next(other for other in builds if builds[other]["equal"] == own["equal"])
    if first == name:
        return "" if sum(other["equal"] == own["equal"] for other in builds.values()) == 1 else "the others' measure"
    differing = {file for file, _ in set(own["sha256"].items()) ^ set(builds[first]["sha256"].items())}
    return f"as {first}" if not differing else f"**{len(differing)} files differ from {first}**: {', '.join(sorted(differing)[:3])}"


def _in_detail(name: str, own: dict[str, Any]) -> Iterable[str]:
    yield from (f"| {name}: stage | s | in | out | dropped |", "|---|---:|---:|---:|---|")
    for stage in own["stages"]:
        seconds = own["stage_s"].get(stage["stage"], 0.0)
        yield f"| {stage['stage']} | {seconds:.1f} | {stage['rows_in']:,} | {stage['rows_out']:,} | {_counts(stage['dropped'])} |"
    outside = own["fresh"]["wall_s"] - sum(own["stage_s"].values())
    yield f"| outside of stages: start, publishing, report | {outside:.1f} | | | |"
    yield ""
    found = (f"{kind} {hit:,} of {wanted:,} ({hit / max(1, wanted):.1%})" for kind, (hit, wanted) in own["planted"].items())
    yield f"{name}: planted and found: {', '.join(found)}."
    yield f"Planted and not found: {_counts(own['not_found'])}. Unplanted and dropped: {_counts(own['unplanted_dropped'])}."
    yield ""


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the pool; 30000 and 100000 are usual")
    parser.add_argument("--layout", choices=["parquet", "jsonl"], default="parquet", help="of the pool's file")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--real", action="store_true", help="English rows from $GLOTLOOM_DATA/gsm8k, items from its mgsm")
    parser.add_argument("--tree", type=Path, default=TREE, help="the checkout under test; default: this one")
    parser.add_argument("--executor", default="", help="inline, processes or ray; passed on only when given, like the next three")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--ray-address", default="")
    parser.add_argument("--part-rows", type=int, default=0, help="--set engine.part_rows=N")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="another key of the recipe"
    )
    parser.add_argument("--name", default="", help="what the one variant is called; default: the executor and workers")
    parser.add_argument("--compare", nargs="+", metavar="VARIANT", help="several, on the same pool: NAME,tree=DIR,workers=N,…")
    parser.add_argument("--teacher", action="store_true", help="the build that asks a teacher, instead of the pool")
    parser.add_argument("--passages", type=int, default=PASSAGES, help="of each language, with --teacher")
    parser.add_argument("--sigma", type=float, default=0.0, help="of --teacher's answer times, log-normal; 0: all take a second")
    parser.add_argument("--pool-only", action="store_true", help="write the pool into --work and stop")
    parser.add_argument("--work", type=Path, help="a folder to keep pool and builds in; default: a temporary one")
    parser.add_argument("--again", action="store_true", help="measure what was measured, too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only print what was measured")
    given = parser.parse_args()
    results = json.loads(given.out.read_text("utf-8")) if given.out.exists() else {}
    if not given.report:
        with contextlib.ExitStack() as stack:
            work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            work.mkdir(parents=True, exist_ok=True)
            measure_all(given, variants(given), work.resolve(), results)
    print(report(results))
    return 0


def variants(given: argparse.Namespace) -> list[Variant]:
    common = Variant(
        name=given.name or " x ".join(filter(None, (given.executor, str(given.workers or "")))) or "default",
        tree=given.tree.resolve(),
        executor=given.executor,
        workers=given.workers,
        ray_address=given.ray_address,
        part_rows=given.part_rows,
        overrides=tuple(given.overrides),
    )
    return [variant(text, common) for text in given.compare] if given.compare else [common]


def measure_all(given: argparse.Namespace, wanted: list[Variant], work: Path, results: dict[str, Any]) -> None:
    """Each variant that was not measured yet; the results are written after every one."""
    pool = None
    if given.teacher:
        title = f"{given.passages} passages in each of {', '.join(TEACHER_LANGUAGES)}; {SLOTS} slots, {ANSWER_S:g} s an answer"
        title += f", sigma {given.sigma:g}" if given.sigma else ""
        done = results.setdefault("teacher", {}).setdefault(title, {})
    else:
        data = Path(os.environ["GLOTLOOM_DATA"]) if given.real else None
        pool = write_pool(work / "pool", given.rows, layout=given.layout, seed=given.seed, data=data)
        told = f"{pool.seconds:.0f} s to write, {pool.characters:.0f} characters a row, {pool.rows.stat().st_size / MIB:.1f} MiB"
        print(f"{pool.rows}: {told}", file=sys.stderr)
        if given.pool_only:
            return
        title = f"{given.rows:,} {'real ' if given.real else ''}rows, {given.layout}, seed {given.seed}"
        done = results.setdefault("builds", {}).setdefault(title, {})
    for own in wanted:
        commit = own.commit()
        if not given.again and own.name in done and done[own.name]["commit"] == commit and commit.isalnum() and commit != "unknown":
            continue
        warm_up(own, work)
        folder = work / "build"
        measured = (
            ask_a_teacher(own, given.passages, given.sigma, folder) if pool is None else measure(own, pool, given.rows, folder)
        )
        setting = {"executor": own.executor, "workers": own.workers, "part_rows": own.part_rows, "overrides": list(own.overrides)}
        done[own.name] = {"commit": commit, "equal": own.equal or commit, **setting, **measured}
        results["machine"] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        given.out.parent.mkdir(exist_ok=True)
        given.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"{own.name}: {measured.get('fresh') or measured['busy_middle']}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
